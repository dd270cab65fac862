"""`data.channels` in a whole run: rows of the log, validation and the summary."""

import json

import pytest

from harness.logging.metrics import read


@pytest.fixture
def rows_file(tmp_path):
    """Sixteen rows of text in two channels, and a row in none."""
    rows = [{"query": f"{n}?", "response": "so " * (1 + n % 5), "channel": "ab"[n % 2]} for n in range(16)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"query": "x", "response": "y"}]), "utf-8")
    return path


def arguments(path, *more):
    return ["data=jsonl", f"data.train={path}", f"data.val={path}", "data.cache_dir=null", "freeze=vit_aligner", *more]


def test_losses_of_channels_are_logged_for_training_and_validation(run, rows_file):
    more = ["data.channels=[a,b]", "trainer.batch_size=3", "trainer.accumulate=2", "trainer.max_steps=2"]
    folder, code = run("channels", *arguments(rows_file, *more, "tuner.dropout=0"))
    assert code == 0
    start, first, last = read(folder.metrics)
    assert {"val/loss/a", "val/loss/b"} <= start.keys() and {"train/loss/a", "train/loss/b"} <= first.keys()
    for row, kind in ((start, "val"), (first, "train"), (last, "train")):
        low, high = sorted((row[f"{kind}/loss/a"], row[f"{kind}/loss/b"]))
        # The loss of all rows lies between those of the channels, but for the one row that belongs to none.
        assert low - 0.3 < row[f"{kind}/loss"] < high + 0.3
    summary = json.loads(folder.summary.read_text())
    assert summary["val"]["val/loss/a"] == last["val/loss/a"] != start["val/loss/a"]


def test_a_channel_that_no_row_has_is_refused(run, rows_file, capsys):
    _, code = run("none", *arguments(rows_file, "data.channels=[a,c]"))
    assert code == 2
    assert "data.channels=c: no training row has this channel" in capsys.readouterr().err
