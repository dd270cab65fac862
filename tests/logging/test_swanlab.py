"""Records of SwanLab without a server."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UserError
from harness.logging.run_info import RunInfo
from harness.logging.swanlab import SwanlabConfig, SwanlabMode, build
from harness.logging.swanlab_logger import SwanLabLogger
from harness.logging.tracker import finish, log_row


def make_run(folder: Path) -> RunInfo:
    config = {"tuner": {"name": "lora", "rank": 8}}
    return RunInfo(folder=folder, run_id="abcd1234", name="lora r8", group="study", tags=["tiny"], config=config)


@pytest.mark.filterwarnings("ignore")
def test_an_offline_record_has_rows_and_config(tmp_path: Path) -> None:
    pytest.importorskip("swanlab")
    loggers = build(SwanlabConfig(tags=["mine"]), make_run(tmp_path))
    for step in (5, 10):
        log_row(loggers, {"step": step, "train/loss": 1 / step})
    finish(loggers, 0)
    (folder,) = (tmp_path / "swanlab").glob("run-*")
    assert "rank" in (folder / "files" / "config.yaml").read_text(encoding="utf-8")
    (record,) = folder.glob("*.swanlab")
    content = record.read_bytes()
    assert b"train/loss" in content and b"study" in content and b"mine" in content


def test_a_server_is_not_sent_again_what_it_has() -> None:
    sent: list[int] = []
    logger = SwanLabLogger(SimpleNamespace(log=lambda row, step: sent.append(step)), last_known=4)
    for step in range(3, 7):
        logger.log_metrics({"train/loss": 0.5}, step)
    assert sent == [5, 6]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "swanlab", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="logging=swanlab: swanlab is not installed"):
        build(SwanlabConfig(), make_run(tmp_path))


def test_the_dashboard_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "swanboard" else name)
    with pytest.raises(UserError, match=r"logging\.mode=local: needs the package swanlab\[dashboard\]"):
        build(SwanlabConfig(mode=SwanlabMode.local), make_run(tmp_path))


def test_a_project_has_a_name() -> None:
    with pytest.raises(UserError, match=r"logging\.project"):
        SwanlabConfig(project="")
