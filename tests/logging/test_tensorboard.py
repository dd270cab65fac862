import time
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from harness.errors import UserError
from harness.logging.run_info import RunInfo
from harness.logging.tensorboard import TensorboardConfig, build
from harness.logging.tracker import finish, log_row


def make_run(folder: Path) -> RunInfo:
    config = {"tuner": {"name": "lora", "rank": 8}, "data": {"train": ["a.jsonl"], "val": None}}
    return RunInfo(folder=folder, run_id="abc", name="run", config=config)


def curve(folder: Path, key: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_rows_become_curves_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    loggers = build(TensorboardConfig(), make_run(tmp_path))
    for step in (4, 8):
        log_row(loggers, {"step": step, "train/loss": 1 / step, "train/lr/llm": 0.5})
    log_row(loggers, {"step": 8, "val/loss": 0.25})
    finish(loggers, 0)
    assert curve(tmp_path, "train/loss") == [(4, 0.25), (8, 0.125)]
    assert curve(tmp_path, "val/loss") == [(8, 0.25)]
    assert "rank: 8" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_the_table_of_runs_has_settings_and_results(tmp_path: Path) -> None:
    """HParams: settings flat, and the figures that the run ended with."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    loggers = build(TensorboardConfig(), make_run(tmp_path))
    log_row(loggers, {"step": 8, "val/loss": 0.25})
    finish(loggers, 0, {"best": 0.25, "tokens_per_s": 100.0, "missing": None})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = events.PluginTagToContent("hparams")
    settings = HParamsPluginData.FromString(told["_hparams_/session_start_info"]).session_start_info.hparams
    assert settings["tuner/rank"].number_value == 8 and settings["tuner/name"].string_value == "lora"
    metrics = HParamsPluginData.FromString(told["_hparams_/experiment"]).experiment.metric_infos
    assert {info.name.tag for info in metrics} == {"summary/best", "summary/tokens_per_s"}
    assert curve(tmp_path, "summary/best")[0][1] == 0.25 and curve(tmp_path, "val/loss") == [(8, 0.25)]


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_a_resumed_run_shows_each_step_once_whatever_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The first attempt lost its last rows, and logged one that is measured again."""
    pytest.importorskip("tensorboard")
    for attempt, steps in enumerate(((1, 2, 3, 5), range(1, 10))):
        loggers = build(TensorboardConfig(), make_run(tmp_path))
        for step in steps:
            log_row(loggers, {"step": step, "train/loss": float(attempt)})
        finish(loggers, attempt)
        clock = time.time
        monkeypatch.setattr(time, "time", lambda clock=clock: clock() + 3600 * hours)
    assert curve(tmp_path, "train/loss") == [(step, 1.0) for step in range(1, 10)]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    loggers = build(TensorboardConfig(), make_run(tmp_path))
    log_row(loggers, {"step": 1, "train/loss": 1.0})
    finish(loggers, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging=tensorboard: tensorboard is not installed .*'\.\[tensorboard\]'"):
        build(TensorboardConfig(), make_run(tmp_path))


def test_a_flush_time_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"logging\.flush_seconds=0: must be 1 or more"):
        TensorboardConfig(flush_seconds=0)
