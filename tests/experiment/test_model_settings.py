"""Whole runs with what is added to a model: NEFTune, new tokens, RoPE scaling; resumed, evaluated and exported."""

import json

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from harness.logging.metrics import read
from harness.model import forward
from harness.model.checkpoint_path import resolve
from harness.trainer.checkpoint import FILE

pytestmark = pytest.mark.slow

NEW_TOKENS = ["model.new_special_tokens=[{folder}/new.txt]", "model.train_new_tokens=true"]


@pytest.fixture
def run_text(run, tmp_path):
    """Runs on rows of text in which new tokens stand."""
    (tmp_path / "new.txt").write_text("<cat>\n<dog>\n")
    for name, count in (("train", 8), ("val", 2)):
        turns = [[f"what says <cat> {number}?", f"<dog> or <cat> {number}"] for number in range(count)]
        roles = ("user", "assistant")
        rows = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, turn, strict=True)]} for turn in turns]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(name, *overrides):
        common = ["data=jsonl", "trainer.batch_size=4", "optim.lr=1e-3", "trainer.save_every_steps=2"]
        rows = [f"data.{key}={tmp_path}/{key}.jsonl" for key in ("train", "val")]
        return run(name, *common, *rows, "trainer.max_steps=5", *(item.format(folder=tmp_path) for item in overrides))

    return start


def losses(folder):
    return [row["train/loss"] for row in read(folder.metrics) if row["step"] > 0]


def weights(folder):
    return torch.load(folder.checkpoints / "step_5" / FILE, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "choice",
    [
        ["trainer.neftune_alpha=10"],
        ["trainer.neftune_alpha=10", "data.packing=true", "data.packing_length=64", "trainer.batch_size=1"],
        [*NEW_TOKENS, "tuner=lora"],
        [*NEW_TOKENS, "tuner=full", "freeze=vit_aligner", "model.init_strategy=normal"],
        ["model.rope_scaling=yarn", "model.max_model_len=8192"],
    ],
    ids=["noise", "noise packed", "new tokens lora", "new tokens full", "yarn"],
)
def test_a_resumed_run_is_the_run_it_would_have_been(run_text, choice):
    choice = [*choice, "trainer.keep_checkpoints=9"]
    folder, code = run_text("a", *choice)
    expected, expected_weights = losses(folder), weights(folder)
    assert code == 0 and len(expected) == 5
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_2")
    _, code = run_text("a", *choice, "trainer.resume=auto")
    assert code == 0 and losses(folder) == expected
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights(folder).items())


def test_noise_is_for_training_alone_and_off_by_default(run_text, monkeypatch):
    """One draw a micro-batch; validation and generation, before, between and after, draw none."""
    drawn = []

    def count(*args, original=forward.embedding_noise):
        drawn.append(args[2])
        return original(*args)

    monkeypatch.setattr(forward, "embedding_noise", count)
    common = ["data.generation.enabled=true", "trainer.val_every_steps=2"]
    plain, _ = run_text("plain", *common)
    assert not drawn
    off, _ = run_text("off", *common, "trainer.neftune_alpha=null")
    assert losses(off) == losses(plain)
    on, _ = run_text("on", *common, "trainer.neftune_alpha=10")
    assert drawn == [10.0] * 5
    first = [next(row["val/loss"] for row in read(folder.metrics) if "val/loss" in row) for folder in (plain, on)]
    assert first[0] == first[1] and losses(on)[0] != losses(plain)[0]


def test_the_result_knows_the_new_tokens(run_text):
    """Nothing but their rows trains: all is frozen, and of the embedding, which is freed, no other row moves."""
    rows_alone = ["freeze.frozen=[llm,aligner,vit]", "freeze.trainable=[model.language_model.embed_tokens]"]
    folder, code = run_text("a", *NEW_TOKENS, "tuner=full", *rows_alone, "optim.weight_decay=0.5")
    assert code == 0 and json.loads(folder.summary.read_text())["trainable_parameters"] == 2 * 96
    result = folder.path / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(result), Qwen3VLForConditionalGeneration.from_pretrained(result)
    new = tokenizer("<cat><dog>")["input_ids"]
    assert new == [512, 513]
    table = model.get_input_embeddings().weight
    base = Qwen3VLForConditionalGeneration.from_pretrained(resolve("harness:tiny")).get_input_embeddings().weight
    assert torch.equal(table[:512], base) and model.lm_head.weight is table
    mean = base.mean(0)
    assert (table[new] - mean).abs().amax(dim=1).min() > 1e-4
    torch.testing.assert_close(table[514:], mean.expand(len(table) - 514, -1), atol=1e-6, rtol=0)
