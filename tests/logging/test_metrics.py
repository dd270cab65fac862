import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.logging.metrics import MetricsFile, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_has_the_step_first_and_then_sorted_keys(path: Path) -> None:
    with MetricsFile(path) as file:
        file.write(5, {"val/loss": 0.5, "perf/tokens_per_s": 1830, "train/loss": 0.25})
    assert path.read_text() == '{"step": 5, "perf/tokens_per_s": 1830, "train/loss": 0.25, "val/loss": 0.5}\n'


def test_what_is_read_is_what_was_written(path: Path) -> None:
    with MetricsFile(path) as file:
        written = [file.write(step, {"train/loss": 1 / (step + 3), "count": step}) for step in range(5)]
    assert read(path) == written


def test_tensors_and_numpy_numbers_become_numbers(path: Path) -> None:
    with MetricsFile(path) as file:
        file.write(1, {"a": torch.tensor(2.0), "b": torch.tensor([3]), "c": np.float32(0.5), "d": np.int64(7)})
    assert json.loads(path.read_text()) == {"step": 1, "a": 2.0, "b": 3, "c": 0.5, "d": 7}


def test_values_that_are_not_finite_are_null_and_named_and_come_back(path: Path) -> None:
    with MetricsFile(path) as file:
        file.write(1, {"train/loss": math.nan, "up": math.inf, "down": -math.inf, "fine": 1.0})
    assert json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == {
        "step": 1,
        "down": None,
        "fine": 1.0,
        "train/loss": None,
        "up": None,
        "nonfinite": {"down": "-inf", "train/loss": "nan", "up": "inf"},
    }
    (row,) = read(path)
    assert math.isnan(row.pop("train/loss"))
    assert row == {"step": 1, "down": -math.inf, "fine": 1.0, "up": math.inf}


def test_a_value_that_is_no_number_is_refused_and_writes_nothing(path: Path) -> None:
    with MetricsFile(path) as file, pytest.raises(TypeError, match="metric train/loss is str, not a number"):
        file.write(1, {"train/loss": "low"})
    assert path.read_bytes() == b""


def test_a_killed_process_loses_no_finished_row(path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from harness.logging.metrics import MetricsFile
file = MetricsFile(Path({str(path)!r}))
for step in range(50):
    file.write(step, {{"train/loss": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd()).returncode == -signal.SIGKILL
    assert [row["step"] for row in read(path)] == list(range(50))


TORN = [b'{"step": 3, "train/lo', b'{"step": 3}', b"\x00\x00\n", b'{"train/loss": 1}\n', b"[3]\n"]


@pytest.mark.parametrize("tail", [tail for tail in TORN if tail != b'{"step": 3}'])
def test_a_torn_last_line_is_left_out_with_a_warning(path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert read(path) == [{"step": 1}, {"step": 2}]
    assert f"{path}:3: the last line is torn" in caplog.text


@pytest.mark.parametrize("tail", TORN)
def test_appending_to_a_torn_file_starts_a_line_of_its_own(path: Path, tail: bytes) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    kept = [row["step"] for row in read(path)]
    with MetricsFile(path) as file:
        file.write(9, {})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*kept, 9]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_place(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a row of metrics"):
        read(path)


def test_a_missing_file_is_an_error(path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read(path)


def test_after_a_resume_each_step_stands_once(path: Path) -> None:
    with MetricsFile(path) as file:
        for step in range(1, 8):
            file.write(step, {"train/loss": math.nan if step == 2 else float(step)})
    with path.open("ab") as torn:
        torn.write(b'{"step": 8, "tra')
    with MetricsFile(path) as file:
        file.truncate_after(4)
        for step in range(5, 10):
            file.write(step, {"train/loss": 10.0 + step})
    rows = read(path)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert math.isnan(rows[1]["train/loss"])
    assert [row["train/loss"] for row in rows[2:]] == [3.0, 4.0, 15.0, 16.0, 17.0, 18.0, 19.0]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_truncating_replaces_the_file_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("no rename")

    with MetricsFile(path) as file:
        file.write(1, {})
        file.write(2, {})
        before = path.read_bytes()
        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no rename"):
            file.truncate_after(1)
    assert path.read_bytes() == before


def test_truncating_after_the_last_step_changes_nothing(path: Path) -> None:
    with MetricsFile(path) as file:
        file.write(1, {"a": 1.0})
        inode = path.stat().st_ino
        file.truncate_after(1)
        assert path.stat().st_ino == inode
