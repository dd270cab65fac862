"""A run that `wandb agent` starts: by the agent's own code from the shipped sweep, with a server of the test's own."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from harness.logging.run_info import RunInfo
from harness.logging.wandb import WandbConfig, WandbMode, build
from harness.registry import CONF
from tests.logging.test_wandb import KEY, FakeServer, home, server  # noqa: F401 - fixtures

ROOT = CONF.parent
SWEEP = ROOT / "sweeps" / "wandb_agent" / "rank_lr.yaml"
QUICK = ["trainer.max_steps=1", "trainer.val_at_start=false", "trainer.accelerator=cpu", "data.train_rows=16"]


@pytest.mark.slow
def test_the_shipped_sweep_runs_under_the_agent(
    home: Path,  # noqa: F811
    server: FakeServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agents = pytest.importorskip("wandb.wandb_agent")
    settings = {"BASE_URL": server.url, "API_KEY": KEY, "SWEEP_ID": "sweep1", "ENTITY": "me", "PROJECT": "theirs"}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    # Python as the agent calls it.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    agent = agents.Agent(SimpleNamespace(), None, sweep_id="sweep1")
    agent._sweep_command = [*yaml.safe_load(SWEEP.read_text(encoding="utf-8"))["command"], *QUICK]
    proposed = {"tuner.rank": {"value": 4}, "optim.lr": {"value": 0.003}, "seed": {"value": 1}}
    agent._command_run({"type": "run", "run_id": "agents1", "program": None, "args": proposed})
    assert agent._run_processes["agents1"].wait(timeout=300) == 0
    folder = tmp_path / "outputs" / "wandb" / "sweep1" / "agents1"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["seed"] == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["tuner"]["rank"] == 4
    # The agent's run, and none beside it; a resume without the agent finds it again.
    assert set(server.runs) == {"agents1"} and server.runs["agents1"]["project"] == "theirs"
    assert json.loads((folder / "status.json").read_text())["run_id"] == "agents1"
    assert any("val/loss" in row for row in server.history["agents1"]) and server.exit_codes == {"agents1": 0}


def test_the_agents_run_is_taken_and_nothing_of_it_given_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    given: list[dict[str, object]] = []
    (tmp_path / "status.json").write_text('{"run_id": "own"}')
    for sweep_id in (None, "sweep1"):
        settings = SimpleNamespace(sweep_id=sweep_id)
        started = SimpleNamespace(id="agents1" if sweep_id else "own", define_metric=lambda *_, **__: None)
        monkeypatch.setattr(wandb, "setup", lambda settings=settings: SimpleNamespace(settings=settings))
        monkeypatch.setattr(wandb, "init", lambda started=started, **options: given.append(options) or started)
        (logger,) = build(WandbConfig(mode=WandbMode.offline), RunInfo(folder=tmp_path, run_id="own", name="run"))
        assert logger.version == started.id == json.loads((tmp_path / "status.json").read_text())["run_id"]
    assert given[0]["id"] == "own" and given[0]["project"] == "harness"
    assert not {"id", "project", "entity"} & given[1].keys()
