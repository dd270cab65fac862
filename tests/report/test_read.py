import json
import os
import socket
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.report.axes import cells_of, find_axes, levels
from harness.report.files import POINTS, read_rows
from harness.report.read import find_runs, parse_overrides, read_study, read_trial, read_trials


def test_a_sweep_becomes_cells_of_seeds(sweep):
    trials = read_trials([sweep])
    assert len(trials) == 27 and find_axes(trials) == ["tuner.rank", "optim.lr"]
    cells = cells_of(trials)
    assert len(cells) == 9 and levels(cells, "optim.lr") == [1e-4, 1e-3, 1e-2]
    assert [len(cell.completed) for cell in cells] == [3, 3, 2, 3, 3, 2, 3, 3, 3]
    assert cells[0].name == "rank=4, lr=0.0001" and list(cells[0].scores("val/loss")) == [1, 2, 3]


def test_values_are_of_the_last_validation(make_trial, tmp_path):
    trial = read_trial(make_trial(tmp_path / "s" / "0", loss=0.7))
    assert trial.values["val/loss"] == 0.7 and trial.step == 20 and trial.command == "python -m harness tuner.rank=8"
    items = trial.items["val/loss"]
    assert items.numerator.sum() / items.weight.sum() == pytest.approx(0.7)
    assert trial.validation["val/loss"].steps == [0, 10, 20]


@pytest.mark.parametrize(
    "status, fields, expected",
    [
        ("running", {}, "running"),
        ("running", {"host": socket.gethostname(), "pid": os.getpid()}, "running"),
        ("running", {"host": socket.gethostname(), "pid": 2**22 + 1}, "killed"),
        ("waiting", {}, "waiting"),
        ("diverged", {}, "diverged"),
    ],
)
def test_states(make_trial, tmp_path, status, fields, expected):
    trial = read_trial(make_trial(tmp_path / "0", status=status, steps=6, error="why", **fields))
    assert trial.status == expected and not trial.completed
    assert (trial.error is None) == (expected in ("running", "waiting")) and not trial.items


def test_half_written_files_are_read_as_far_as_they_go(make_trial, tmp_path):
    folder = make_trial(tmp_path / "0", status="running")
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + b'{"step": 21, "train/lo')
    assert read_trial(folder).step == 20
    (folder / "status.json").write_text('{"state": "comp')
    (folder / "config.yaml").write_text("a: [1,")
    (folder / "metrics.jsonl").write_bytes(b"")
    trial = read_trial(folder)
    assert (trial.status, trial.config, trial.step, trial.values) == ("waiting", {}, 0, {})


def test_items_of_another_validation_are_not_used(make_trial, tmp_path):
    folder = make_trial(tmp_path / "0")
    content = json.loads((folder / "items.json").read_text())
    (folder / "items.json").write_text(json.dumps(content | {"step": 10}))
    assert read_trial(folder).items == {}


def test_long_curves_are_thinned_and_keep_validations(tmp_path):
    lines = [{"step": step, "train/loss": 1.0} | ({"val/loss": 2.0} if step == 777 else {}) for step in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert POINTS <= len(rows) <= POINTS + 3 and rows[0]["step"] == 0 and rows[-1]["step"] == 4999
    assert any("val/loss" in row for row in rows)


def test_axes_without_trial_json_are_those_of_hydra(make_trial, tmp_path):
    for number, rank in enumerate((4, 8)):
        make_trial(tmp_path / "s" / str(number), rank=rank, trial_json=False)
    assert find_axes(read_trials([tmp_path / "s"])) == ["tuner.rank"]


def test_axes_without_any_overrides_are_keys_that_differ(make_trial, tmp_path):
    for number, rank in enumerate((4, 8)):
        (make_trial(tmp_path / "s" / str(number), rank=rank) / "trial.json").unlink()
    assert find_axes(read_trials([tmp_path / "s"])) == ["tuner.rank"]


def test_folders_that_differ_beyond_their_overrides_are_told_apart(make_trial, tmp_path):
    for number, weight_decay in enumerate((0.0, 0.1)):
        optim = {"optim": {"name": "adamw", "lr": 1e-3, "weight_decay": weight_decay}}
        make_trial(tmp_path / f"sweep{number}" / "0", config=optim)
        make_trial(tmp_path / f"sweep{number}" / "1", rank=4, config=optim)
    trials = read_trials([tmp_path / "sweep0", tmp_path / "sweep1"])
    assert find_axes(trials) == ["tuner.rank", "optim.weight_decay"] and len(cells_of(trials)) == 4


def test_what_changes_no_result_makes_no_cell(make_trial, tmp_path):
    for number in range(2):
        make_trial(tmp_path / "s" / str(number), seed=number, config={"data": {"workers": number}})
    trials = read_trials([tmp_path / "s"])
    assert find_axes(trials) == [] and len(cells_of(trials)) == 1


def test_a_seed_that_ran_twice_counts_once(make_trial, tmp_path):
    for number, loss in enumerate((0.5, 0.6)):
        make_trial(tmp_path / f"s{number}" / "0", loss=loss)
    trials = read_trials([tmp_path / "s0", tmp_path / "s1"])
    find_axes(trials)
    assert cells_of(trials)[0].scores("val/loss") == {1: 0.5}


def test_what_changes_no_result_makes_an_axis_only_where_a_seed_ran_more_than_once(make_trial, tmp_path):
    make_trial(tmp_path / "s" / "0", seed=1, overrides=("trainer.log_every_steps=1",))
    make_trial(tmp_path / "s" / "1", seed=2)
    trials = read_trials([tmp_path / "s"])
    assert find_axes(trials) == [] and len(cells_of(trials)) == 1
    for workers in (0, 4):
        make_trial(tmp_path / "t" / str(workers), overrides=(f"data.workers={workers}",))
    trials = read_trials([tmp_path / "t"])
    assert find_axes(trials) == ["data.workers"] and len(cells_of(trials)) == 2


def test_a_list_is_one_part_of_a_cells_name(make_trial, tmp_path):
    for number, modules in enumerate((["q_proj", "v_proj"], ["q_proj", "k_proj"])):
        make_trial(tmp_path / "s" / str(number), config={"tuner": {"name": "lora", "target_modules": modules}})
    trials = read_trials([tmp_path / "s"])
    find_axes(trials)
    assert [cell.name for cell in cells_of(trials)] == [
        'target_modules=["q_proj","v_proj"]',
        'target_modules=["q_proj","k_proj"]',
    ]


def test_a_study_names_its_axes_and_metric(make_trial, tmp_path):
    (tmp_path / "study.yaml").write_text(
        "name: s\nquestion: which?\nmetric: val/loss\nmode: min\naxes: [optim.lr, seed]\n"
    )
    study = read_study([tmp_path])
    assert (study.name, study.question, study.metric, study.mode) == ("s", "which?", "val/loss", "min")
    for number, lr in enumerate((1e-3, 1e-4)):
        make_trial(tmp_path / str(number), lr=lr)
    assert find_axes(read_trials([tmp_path]), study.axes) == ["optim.lr"]


def test_overrides_are_parsed():
    texts = ["+a.b=1e-3", "tuner=dora", "~memory", "seed=3", "x=null", "data@y=files", "q='a b'", "flag=true"]
    expected = {"a.b": 1e-3, "tuner": "dora", "seed": 3, "x": None, "data": "files", "q": "a b", "flag": True}
    assert parse_overrides(texts) == expected


def test_runs_are_found_in_their_order(make_trial, tmp_path):
    for name in ("10_a", "2_b", "1_c"):
        make_trial(tmp_path / "s" / name)
    (tmp_path / "s" / "1_c" / "model").mkdir()
    (tmp_path / "s" / "1_c" / "model" / "config.yaml").touch()
    assert [path.name for path in find_runs(tmp_path)] == ["1_c", "2_b", "10_a"]


@pytest.mark.parametrize("name, reason", [("missing", "no such folder"), (".", "no run folder in it")])
def test_a_folder_without_runs_is_refused(tmp_path, name, reason):
    with pytest.raises(UserError, match=reason):
        read_trials([Path(tmp_path / name)])
