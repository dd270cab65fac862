"""`hydra/sweeper=optuna`: proposals, pruning, and a search that goes on. Trials are fake, but for one test."""

import json
import os
import subprocess
import sys
import time

import pytest

from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.sweep.folder import state_of
from tests.sweep.conftest import ROOT
from tests.sweep.fake_trial import FAILS

optuna = pytest.importorskip("optuna", reason="extra optuna")

from harness.sweep.plugin import Direction, Pruner, Sampler  # noqa: E402
from harness.sweep.proposal import Options, make_pruner, make_sampler, open_study  # noqa: E402
from harness.sweep.space import split  # noqa: E402

BASE = ("hydra/sweeper=optuna", "hydra/launcher=pool", "hydra.launcher.jobs=2", "trainer.accelerator=cpu")
LR = "optim.lr=tag(log,interval(1e-5,1e-1))"
DEFAULT = {"trials": 4, "sampler": Sampler.tpe, "startup": 2, "pruner": Pruner.none, "min_steps": 1, "reduction": 3}
DEFAULT |= {"objectives": {}, "seed": 0}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tuner.rank=4,8", optuna.distributions.CategoricalDistribution(["4", "8"])),
        ("tuner.rank=range(4,17,4)", optuna.distributions.IntDistribution(4, 16, step=4)),
        ("tuner.rank=int(interval(4,64))", optuna.distributions.IntDistribution(4, 64)),
        ("tuner.dropout=interval(0,0.5)", optuna.distributions.FloatDistribution(0.0, 0.5)),
        (LR, optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)),
    ],
)
def test_hydras_words_are_distributions(override, expected):
    fixed, space = split(["tuner=dora", "hydra.sweep.dir=x", override])
    assert fixed == ["tuner=dora"] and space == {override.partition("=")[0]: expected}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner.rank=4"], "no key is to be sampled"),
        (["seed=1,2"], "seed=...: is nothing to optimise"),
        (["optim.lr=tag(log,interval(0,1))"], "optim.lr=0 to 1: must grow, and be above 0"),
        (["optim.lr=interval(1,1)"], "must grow"),
        (["tuner=glob(*)"], r"tuner=glob\(\*\): is nothing that can be sampled"),
    ],
)
def test_what_can_not_be_sampled_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        split(overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "hydra.sweeper.trials=0: must be 1 or more"),
        ({"reduction": 1}, "hydra.sweeper.reduction=1: must be 2 or more"),
        ({"min_steps": 0}, "hydra.sweeper.min_steps=0: must be 1 or more"),
        ({"startup": -1}, "hydra.sweeper.startup=-1: must be 0 or more"),
    ],
)
def test_options_have_ranges(changes, message):
    with pytest.raises(UserError, match=message):
        Options(**(DEFAULT | changes)).check()


@pytest.mark.parametrize("changes", [{"pruner": Pruner.asha}, {"sampler": Sampler.cmaes}])
def test_several_objectives_suit_no_pruner_and_no_evolution(changes):
    two = {"val/loss": Direction.minimize, "trainable_parameters": Direction.minimize}
    with pytest.raises(UserError, match="has one objective"):
        Options(**(DEFAULT | {"objectives": two} | changes)).check()


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("harness.sweep.proposal.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package optuna is missing; run pip install 'qwen3-vl-harness\[optuna\]'"):
        Options(**DEFAULT).check()


@pytest.mark.parametrize("sampler", Sampler)
def test_a_search_that_is_opened_again_proposes_what_it_would_have(tmp_path, sampler):
    if sampler is Sampler.cmaes:
        pytest.importorskip("cmaes", reason="extra optuna")
    options = Options(**(DEFAULT | {"sampler": sampler}))
    _, space = split([LR, "tuner.dropout=interval(0,0.5)"])

    def search(path, stops):
        for number in range(12):
            if number == 0 or number in stops:
                study = open_study(path, "x", ["minimize"], make_pruner(options))
            study.sampler = make_sampler(options, len(study.trials))
            proposal = study.ask(space)
            study.tell(proposal, abs(proposal.params["optim.lr"] - 1e-3) + proposal.params["tuner.dropout"])
        return [item.params for item in study.trials]

    whole, stopped = search(tmp_path / "a", ()), search(tmp_path / "b", (3, 7))
    assert whole == stopped and len({json.dumps(point) for point in whole}) == 12


def test_a_torn_line_of_the_journal_is_dropped(tmp_path):
    options = Options(**DEFAULT)
    study = open_study(tmp_path / "log", "x", ["minimize"], make_pruner(options))
    study.tell(study.ask(split([LR])[1]), 1.0)
    with (tmp_path / "log").open("a") as file:
        file.write('{"op_code": 5, "wor')
    again = open_study(tmp_path / "log", "x", ["minimize"], make_pruner(options))
    again.tell(again.ask(split([LR])[1]), 2.0)
    assert [item.value for item in open_study(tmp_path / "log", "x", ["minimize"], None).trials] == [1.0, 2.0]


@pytest.mark.slow
def test_a_killed_search_takes_up_what_was_running_and_a_failed_trial_ends_none(sweep):
    arguments = (*BASE, "hydra.sweeper.trials=6", "hydra.sweeper.startup=3", "trainer.max_steps=25", LR)
    process = sweep.start(*arguments)
    deadline = time.monotonic() + 60
    while sum((trial / "metrics.jsonl").is_file() for trial in sweep.trials()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    with (sweep.folder / "optuna.log").open("a") as file:
        file.write('{"torn')
    result = sweep(*arguments)
    assert result.returncode == 0, result.err
    assert "(goes on)" in result.out and "best: optim.lr=" in result.out
    found = [json.loads((trial / "trial.json").read_text()) for trial in sweep.trials()]
    assert [item["number"] for item in found] == list(range(6))
    assert len({item["identity"] for item in found}) == 6
    assert {state_of(RunFolder(trial)) for trial in sweep.trials()} == {"completed"}
    more = sweep(*(item.replace("trials=6", "trials=7") for item in arguments))
    assert more.returncode == 0 and "7 trials, 6 over" in more.out and len(sweep.trials()) == 7
    failing = sweep(*BASE, "hydra.sweeper.trials=3", "trainer.max_steps=3", f"seed={FAILS}", LR)
    assert failing.returncode == 1 and "[3/3]" in failing.out and len(sweep.trials()) == 10


@pytest.mark.slow
def test_trials_that_lag_behind_are_ended(sweep):
    pruning = ("hydra.sweeper.pruner=asha", "hydra.sweeper.sampler=random", "hydra.sweeper.min_steps=10")
    result = sweep(*BASE, *pruning, "hydra.sweeper.trials=8", "trainer.max_steps=80", LR)
    assert result.returncode == 0, result.err
    states = [state_of(RunFolder(trial)) for trial in sweep.trials()]
    assert set(states) == {"completed", "pruned"}
    losses = {"completed": [], "pruned": []}
    for trial, state in zip(sweep.trials(), states, strict=True):
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        losses[state].append(rows[9]["val/loss"])
        if state == "pruned":
            assert 10 <= len(rows) < 80
            assert json.loads((trial / "summary.json").read_text())["error"].startswith("asha: val/loss ")
    assert min(losses["completed"]) < min(losses["pruned"])
    # None of them is anything to run again.
    again = sweep(*BASE, *pruning, "hydra.sweeper.trials=8", "trainer.max_steps=80", LR)
    assert again.returncode == 0 and "8 trials, 8 over" in again.out


@pytest.mark.slow
def test_several_objectives_leave_what_is_not_dominated(sweep):
    objectives = "hydra.sweeper.objectives={val/loss:minimize,steps:maximize}"
    axes = ("trainer.max_steps=range(2,6)", LR)
    result = sweep(*BASE, objectives, "hydra.sweeper.trials=5", *axes)
    assert result.returncode == 0, result.err
    assert any(line.startswith("not dominated: ") and "steps 5" in line for line in result.out.splitlines())


@pytest.mark.slow
def test_ranks_of_a_trial_never_see_anothers_point(tmp_path):
    """Real trials of two gloo processes each: the ranks of each trial had the same config, and joined by its hash."""
    arguments = [
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.trials=2", "hydra.sweep.dir=sweep", LR, "trainer.devices=2"),
        *("trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.batch_size=4", "trainer.val_at_start=false"),
        *("data.train_rows=16", "data.workers=0", "data.generation.enabled=false", "trainer.val_batch_size=128"),
    ]
    result = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    trials = sorted((tmp_path / "sweep").glob("*/trial.json"))
    assert len(trials) == 2
    for record in trials:
        content, folder = json.loads(record.read_text()), record.parent
        assert json.loads((folder / "summary.json").read_text())["config_hash"] == content["identity"]
        assert (folder / "ranks" / "rank_1.log").is_file() and not list((folder / "ranks").glob("*.json"))
