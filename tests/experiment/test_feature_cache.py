"""Whole runs with the cache of visual features: the same losses and weights, on one machine's disk or after a break."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from harness.errors import UserError
from harness.experiment import feature_cache
from harness.logging.metrics import read
from harness.trainer.checkpoint import FILE

COMMON = (
    *("data=jsonl", "trainer.batch_size=2", "trainer.max_steps=8", "optim.lr=1e-3", "trainer.val_every_steps=4"),
    *("trainer.save_every_steps=4", "trainer.keep_checkpoints=9", "trainer.log_every_steps=1"),
)
TURNS = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "a red circle"}]


@pytest.fixture
def start(run, tmp_path):
    """Runs on six rows of JPEGs, four steps an epoch with the text row, and returns folder and code."""
    pixels = np.random.default_rng(0)
    rows = [{"messages": TURNS, "images": [f"{number}.jpg"]} for number in range(6)]
    for number in range(6):
        picture = pixels.integers(0, 256, (64, 32 * (number % 3 + 1), 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg")
    rows.append({"messages": [TURNS[0] | {"content": "hello"}, TURNS[1]]})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def go(name, *overrides, mode="always"):
        folder = (f"data.vit_cache.folder={tmp_path / 'kept'}",) if mode != "never" else ()
        files = (f"data.train={path}", f"data.val={path}", f"data.vit_cache.mode={mode}")
        return run(name, *COMMON, *files, *folder, *overrides)

    return go


def losses(folder):
    return [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in read(folder.metrics)]


def assert_same_weights(one, other):
    found, expected = (
        torch.load(f.checkpoints / "step_8" / FILE, weights_only=True)["state_dict"] for f in (one, other)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ["model.dtype=bfloat16"],
        ["model.dtype=bfloat16", "freeze=vit"],
        ["model.dtype=bfloat16", "trainer.accumulate=2", "data.packing=true", "data.packing_length=64"],
    ],
    ids=" ".join,
)
def test_losses_and_weights_are_those_without_the_cache(start, choice):
    plain, _ = start("plain", *choice, mode="never")
    cold, code = start("cold", *choice, "trainer.val_at_start=true")
    assert code == 0 and losses(cold) == losses(plain)
    assert_same_weights(cold, plain)
    summary = json.loads(cold.summary.read_text())["vit_cache"]
    assert summary["dropped"] == 0 and summary["written_gib"] > 0 and summary["hit_rate"] > 0.5
    assert json.loads(plain.summary.read_text())["vit_cache"] is None
    warm, _ = start("warm", *choice, "data.workers=1")
    assert losses(warm) == losses(plain)
    assert_same_weights(warm, plain)
    assert json.loads(warm.summary.read_text())["vit_cache"]["hit_rate"] == 1
    row = read(warm.metrics)[-1]
    assert row["perf/vit_cache_hit_rate"] == 1 and row["perf/vit_cache_read_gib"] > 0
    assert row["perf/vit_cache_written_gib"] == 0 and row["perf/vit_cache_saved_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["vit_aligner", "vit"])
@pytest.mark.parametrize("lost", [False, True], ids=["entries there", "entries lost"])
def test_a_resumed_run_is_the_run_it_would_have_been(start, tmp_path, lost, freeze):
    """In float32, where the tower's products do depend on how many rows they have, and with dropout in the mergers."""
    folder, _ = start("a", "trainer.val_at_start=false", f"freeze={freeze}")
    expected = losses(folder)
    weights = torch.load(folder.checkpoints / "step_8" / FILE, weights_only=True)["state_dict"]
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_4")
    for path in list(tmp_path.glob("kept/*/*/*.feat"))[:3] if lost else ():
        path.unlink()
    _, code = start("a", "trainer.val_at_start=false", f"freeze={freeze}", "trainer.resume=auto")
    assert code == 0 and losses(folder) == expected
    for name, value in torch.load(folder.checkpoints / "step_8" / FILE, weights_only=True)["state_dict"].items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze=aligner"], "data.vit_cache.mode=always: the ViT trains or has an adapter"),
        (["tuner=full", "freeze=none"], "data.vit_cache.mode=always: the ViT trains or has an adapter"),
        (["data.vit_cache.folder=null", "data.cache_dir=null"], "leaves no place for features"),
        (["data.vit_cache.folder=/proc/none"], "features can not be kept there"),
        (["data.vit_cache.max_gib=0"], "data.vit_cache.max_gib=0.0: give a number above 0"),
        (["data.vit_cache.mode=never"], "has no effect with data.vit_cache.mode=never"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_where_it_would_be_wrong_it_is_refused(start, capsys, overrides, message):
    _, code = start("a", *overrides)
    assert code == 2 and message in capsys.readouterr().err


def test_ranks_that_share_the_weights_of_a_vit_keep_no_features(make_tuned, make_config):
    config = make_config("memory/strategy=zero3", "trainer.devices=2", "data.vit_cache.mode=always")
    data = SimpleNamespace(shows_something=True)
    with pytest.raises(UserError, match="memory/strategy=zero3 splits the ViT, and ranks that find features"):
        feature_cache.open_feature_cache(config, data, make_tuned(), "32-true", torch.device("cpu"))


def test_rows_of_text_alone_are_refused(start, tmp_path, capsys):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"messages": [TURNS[0] | {"content": "hello"}, TURNS[1]]}) + "\n")
    _, code = start("a", f"data.train={path}", "data.val=null", "trainer.val_every_steps=null")
    assert code == 2 and "no training row shows an image or video; set never" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "smallest", "why"),
    [
        ([], None, "it has 599,872 parameters, and is as fast as a file"),
        (["freeze=aligner"], 0, "the ViT trains or has an adapter"),
        (["trainer.max_steps=4"], 0, "no row comes a second time in this run"),
        (["data.vit_cache.max_gib=1e-5"], 0, "GiB, over data.vit_cache.max_gib=1e-05"),
        ([], 0, "the ViT's features are kept behind the mergers"),
        (["freeze=vit"], 0, "the ViT's features are kept in front of the mergers, which train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_auto_says_what_it_does_and_why(start, monkeypatch, overrides, smallest, why):
    if smallest is not None:
        monkeypatch.setattr(feature_cache, "SMALLEST_TOWER", smallest)
    folder, code = start("a", *overrides, "trainer.val_at_start=false", mode="auto")
    text = (folder.path / "train.log").read_text()
    assert code == 0 and why in text and text.count("data.vit_cache.mode=auto") == 1
    assert (json.loads(folder.summary.read_text())["vit_cache"] is not None) == ("are kept" in why)
