"""A file with broken rows of every kind: the run trains on the rest, and the counts add up to the rows in the file."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    import bad_rows
finally:
    sys.path.remove(str(FOLDER))

pytestmark = pytest.mark.slow

ROWS = bad_rows.EVERY * len(bad_rows.BROKEN)


@pytest.fixture
def broken(tmp_path):
    """Rows of which 5 % are broken, each in a way of its own, spread over the file."""
    return bad_rows.write(tmp_path, ROWS)


@pytest.mark.parametrize("packing", [[], ["data.packing=true", "trainer.batch_size=2"]], ids=["padded", "packed"])
def test_trains_on_the_rest_and_names_every_row(run, tmp_path, broken, packing):
    lines = (tmp_path / "train.jsonl").read_bytes().splitlines()
    lines[0] = json.dumps(bad_rows.row(0, answer="word " * 500)).encode()
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    folder, code = run(
        "skip", *bad_rows.settings(tmp_path / "train.jsonl"), "data.on_error=skip", "data.max_length=200", *packing
    )
    assert code == 0
    account = json.loads(folder.summary.read_text())["data"]["train"]
    (dropped,) = account["dropped"]["over max_length"]["first"]
    assert dropped.endswith("train.jsonl:1")
    # The one that was too long is no broken one.
    (wrong,) = bad_rows.judge(folder, broken, ROWS)
    assert wrong.startswith(f"rows, used and dropped are ({ROWS}, {ROWS - 1 - len(broken)}, ")


def test_ends_at_the_first_broken_row_by_default(run, tmp_path, broken, capsys):
    _, code = run("raise", *bad_rows.settings(tmp_path / "train.jsonl"))
    assert code == 2 and "train.jsonl:6: " in capsys.readouterr().err


def test_the_script_sees_what_is_not_named_or_good(run, tmp_path, broken):
    folder, _ = run("skip", *bad_rows.settings(tmp_path / "train.jsonl"), "data.on_error=skip")
    assert bad_rows.judge(folder, broken, ROWS) == []
    log = folder.path / "train.log"
    log.write_text(log.read_text().replace("train.jsonl:6: ", "train.jsonl:7: "))
    assert [text.partition(":")[0] for text in bad_rows.judge(folder, broken, ROWS)] == [
        "line 6 is broken (missing image) and not named",
        "line 7 is good and skipped",
    ]
