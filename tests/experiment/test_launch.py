"""What a multirun says of its trials, and the names of their folders."""

import json
import math
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from harness import __main__ as command_line
from harness.errors import UserError
from harness.experiment.launch import Task, comparison, read_summary, swept


def completed(loss, match=None, metric="val/loss"):
    val = {"val/loss": loss} | ({} if match is None else {"val/exact_match": match})
    best = {"metric": metric, "value": val[metric], "step": 1}
    return {"status": "completed", "val": val, "best": best, "tokens_per_s": 1234.5}


def order(table):
    """Names of the trials from first to last."""
    return [word for line in table.splitlines() for word in line.split()[1:2] if word.startswith("trial_")]


def folders(summaries):
    return {Path(f"/runs/trial_{name}"): summary for name, summary in summaries.items()}


def test_the_lowest_loss_is_first_and_failures_last():
    table = comparison(
        folders({"c": {"status": "failed"}, "b": completed(0.5), "d": {"status": "diverged"}, "a": completed(0.25)})
    )
    assert order(table) == ["trial_a", "trial_b", "trial_c", "trial_d"]
    first = next(line for line in table.splitlines() if "trial_a" in line)
    assert first.split() == ["1", "trial_a", "completed", "0.2500", "-", "0.2500", "1,234"]
    assert "best first by the last val/loss" in table


def test_the_highest_exact_match_is_first_where_it_is_monitored():
    """Though its loss is the higher one."""
    metric = "val/exact_match"
    table = comparison(
        folders({"c": {"status": "failed"}, "b": completed(0.1, 0.5, metric), "a": completed(0.9, 0.75, metric)})
    )
    assert order(table) == ["trial_a", "trial_b", "trial_c"]


def test_a_loss_that_is_no_number_is_behind_every_other():
    table = comparison(folders({"b": completed(math.nan), "c": completed(0.5), "a": completed(0.25)}))
    assert order(table) == ["trial_a", "trial_c", "trial_b"]


def test_trials_that_all_failed_are_compared_too():
    assert order(comparison(folders({"a": {"status": "failed"}}))) == ["trial_a"]


def test_a_trial_that_was_killed_counts_as_failed(tmp_path):
    assert read_summary(tmp_path) == {"status": "failed"}


def exclude_keys(overrides):
    parsed = OverridesParser.create().parse_overrides(swept(overrides))
    return [key for item in parsed for key in item.value()]


def test_only_swept_keys_name_a_trial():
    overrides = ["optim.lr=1e-4,2e-4", "tuner=dora", "tuner.rank=range(4,9)", "+seed=3", "trainer.max_steps=2"]
    assert exclude_keys(overrides) == ["seed", "trainer.max_steps", "tuner"]
    assert swept(["optim.lr=1e-4,2e-4"]) == []


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([0, 2], 2), ([2, 2], 2), ([2, 1], 1), ([0, 1], 1), ([130], 1), ([-9, 2], 1)],
)
def test_the_exit_code_tells_mistakes_from_crashes(tmp_path, capsys, codes, expected):
    trials = [tmp_path / f"trial_{number}" for number in range(len(codes))]
    for trial, code in zip(trials, codes, strict=True):
        trial.mkdir()
        (trial / "summary.json").write_text(json.dumps({"status": "failed"} if code else completed(0.5)))
    assert Task(trials=trials, codes=codes).finish() == expected
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == f"run: {tmp_path}"
    assert len(order(output)) == len(codes)


def test_no_trial_means_success():
    """As after `--cfg job`, which Hydra answers itself."""
    assert Task().finish() == 0


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("optim.lr=0.0001,tuner=dora", "optim.lr-0.0001_tuner-dora"),
        ("model.path=/data/my model", "model.path-_data_my_model"),
        ("data.train=[a.jsonl,b.jsonl]", "data.train-_a.jsonl_b.jsonl"),
        ("", "default"),
        ("x" * 300, "x" * 100),
    ],
)
def test_folder_names_hold_no_sign_that_a_shell_or_hydra_reads(overrides, name):
    cfg = OmegaConf.create({"overrides": overrides, "name": "${slug:${overrides}}"})
    assert cfg.name == name


@pytest.mark.parametrize("begun", [False, True])
def test_an_error_of_the_system_is_a_mistake_only_while_folders_are_made(monkeypatch, begun):
    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hydra, "main", lambda **options: lambda task: fail)
    monkeypatch.setattr(sys, "argv", ["harness"])
    with pytest.raises(OSError if begun else UserError, match="No space left"):
        command_line._start([], Task(begun=begun))
