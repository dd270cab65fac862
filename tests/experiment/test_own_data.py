"""A user's own checkpoint and JSONL: a run from them, and the exit code and message for each mistake."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from harness.model.checkpoint_path import resolve

pytestmark = pytest.mark.slow

TEXT = {"role": "user", "content": "<image>What is in the picture?"}
ANSWER = {"role": "assistant", "content": "a red circle"}


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint folder of random weights, as `save_pretrained` writes it, with processor files beside."""
    folder = tmp_path / "checkpoint"
    Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(resolve("harness:tiny"))).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copy(f"{resolve('harness:tiny')}/{name}", folder / name)
    return folder


@pytest.fixture
def write(tmp_path):
    """Writes JPEGs of several sizes and a JSONL of the rows given."""

    def rows_to_file(rows) -> str:
        pixels = np.random.default_rng(0)
        for number, size in enumerate([(96, 64), (33, 121), (200, 150), (64, 64)]):
            Image.fromarray(pixels.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return rows_to_file


def good(number):
    return {"messages": [TEXT, ANSWER], "images": [f"{number % 4}.jpg"]}


@pytest.fixture
def run_jsonl(run):
    """As `run`, for JSONL."""

    def start(*overrides):
        return run("a", "data=jsonl", "trainer.batch_size=2", "trainer.max_steps=3", *overrides)

    return start


def test_trains_from_a_saved_checkpoint_on_jpegs(run_jsonl, checkpoint, write):
    train = write([good(number) for number in range(8)])
    folder, code = run_jsonl(
        f"model.path={checkpoint}", f"data.train={train}", f"data.val={train}", "data.generation.enabled=true"
    )
    assert code == 0
    summary = json.loads(folder.summary.read_text())
    assert summary["steps"] == 3 and summary["val"]["val/loss"] > 0
    assert json.loads((folder.path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "hello"}, r"train\.jsonl:2: .*sentence"),
        ({"messages": [TEXT, ANSWER], "images": ["nothing.jpg"]}, r"train\.jsonl:2: .*nothing\.jpg"),
        ({"messages": [TEXT, ANSWER], "images": ["cut.jpg"]}, r"train\.jsonl:2: .*cut\.jpg"),
        ({"messages": [TEXT, TEXT | {"content": "<image><image>"}, ANSWER], "images": ["0.jpg"]}, r"train\.jsonl:2: "),
    ],
    ids=["no messages", "image missing", "image truncated", "more tags than images"],
)
def test_a_bad_row_is_named_by_file_and_line(run_jsonl, write, tmp_path, capsys, row, message):
    train = write([good(0), row])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:2000])
    folder, code = run_jsonl(f"data.train={train}", "data.workers=1")
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert re.search(message, error), error
    assert json.loads(folder.summary.read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=nothing.jsonl"], "nothing.jsonl"),
        (["data.train={train}", "model.path={folder}"], "is a 'llama' checkpoint, not a Qwen3-VL"),
        (["data.train={train}", "freeze=llm"], "aligner, vit: should train, but no training row has an image"),
    ],
    ids=["data missing", "not a Qwen3-VL", "vision trains on text alone"],
)
def test_other_mistakes_end_with_exit_code_2(run_jsonl, write, tmp_path, capsys, overrides, message):
    text = [{"messages": [{"role": "user", "content": "hello"}, ANSWER]}] * 2
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    filled = [item.format(train=write(text), folder=tmp_path) for item in overrides]
    _, code = run_jsonl(*filled)
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
