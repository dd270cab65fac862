"""Processes that somebody else started agree on a run folder: here threads, that meet on a port as processes do."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

import harness
from harness.errors import UserError
from harness.experiment import meeting
from harness.experiment.meeting import Meeting, called

ROOT = Path(harness.__file__).parent.parent


@pytest.fixture(autouse=True)
def address(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))


def meet(folder, first, second):
    """Lets two processes meet; returns what the second got, and the errors of both."""
    got: dict[str, object] = {}

    def follow():
        try:
            got["folder"] = Meeting(number=1, size=2).follow(second)
        except UserError as error:
            got["second"] = str(error)

    other = threading.Thread(target=follow)
    other.start()
    try:
        Meeting(number=0, size=2).announce(folder, first)
    except UserError as error:
        got["first"] = str(error)
    other.join()
    return got


def test_the_others_follow_the_first_one_into_its_folder(tmp_path):
    (tmp_path / "config.yaml").touch()
    assert meet(tmp_path, "abc", "abc") == {"folder": tmp_path}


def test_processes_of_different_configs_part(tmp_path):
    (tmp_path / "config.yaml").touch()
    got = meet(tmp_path, "abc", "abd")
    assert got.keys() == {"first", "second"}
    for error in got.values():
        assert error.startswith("process 1 has another config than process 0 (hash ab") and "one command" in error


def test_a_folder_that_a_node_does_not_see_is_refused(tmp_path):
    assert "has to be on a disk that all nodes see" in meet(tmp_path / "nowhere", "abc", "abc")["second"]


def test_a_process_that_does_not_come_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "_WAIT", meeting.timedelta(seconds=1))
    with pytest.raises(UserError, match="not all 2 processes came within 0:00:01"):
        Meeting(number=0, size=2).announce(tmp_path, "abc")
    with pytest.raises(UserError, match="the first process did not name a run folder within 0:00:01"):
        Meeting(number=1, size=2).follow("abc")


def test_who_meets(make_config, monkeypatch):
    assert called(make_config().trainer) is None and called(make_config("trainer.devices=2").trainer) is None
    nodes = make_config("trainer.nodes=2", "trainer.devices=4").trainer
    monkeypatch.setenv("NODE_RANK", "1")
    assert called(nodes) == Meeting(number=1, size=2)
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert called(nodes) == Meeting(number=5, size=8)
    with pytest.raises(UserError, match="torchrun started 8 processes, 4 on a node"):
        called(make_config().trainer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.devices=3"], "trainer.devices=3, trainer.nodes=1: torchrun started 2 processes, 2 on a node; set"),
        (["-m", "trainer.devices=2", "seed=1,2"], "torchrun started 2 processes: a multirun starts the processes of"),
    ],
)
def test_what_was_started_has_to_be_what_is_asked_for(tmp_path, arguments, message):
    ranked = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **ranked},
    )
    assert result.returncode == 2 and result.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
