from pathlib import Path

from harness import registry
from harness.logging.console import ConsoleConfig
from harness.logging.run_info import RunInfo


def test_it_has_no_tracker(tmp_path: Path) -> None:
    run = RunInfo(folder=tmp_path, run_id="abc", name="a run")
    assert registry.build("logging", ConsoleConfig(), run) == []
    assert list(tmp_path.iterdir()) == []
