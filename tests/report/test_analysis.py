import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.report.__main__ import main
from harness.report.analysis import analyse, budget
from harness.report.choice import honest
from harness.report.layout import notes


@pytest.fixture
def report(sweep):
    return analyse([sweep])


def test_the_best_is_first_and_groups_have_letters(report):
    board = report.comparison.board
    assert (board[0].cell.axes, board[0].letters) == ({"tuner.rank": 16, "optim.lr": 1e-3}, "a")
    assert board[0].chance == 1.0 and all(one.p < 0.05 for one in board[1:]) and len(board) == 9
    assert board[-1].letters == board[-2].letters and report.comparison.by_item


def test_methods_stand_at_their_best_rate(report):
    assert [(method.name, method.chosen.cell.axes["optim.lr"]) for method in report.methods] == [
        ("rank=16", 1e-3),
        ("rank=8", 1e-3),
        ("rank=4", 1e-3),
    ]
    assert [method.letters for method in report.methods] == ["a", "b", "c"]
    assert all(abs(method.honest - method.chosen.estimate.value) < 0.02 for method in report.methods)


@pytest.mark.parametrize(
    "text",
    [
        "rank=16 is the highest tried",
        "unequally many seeds",
        "unequal trainable parameters: 4,000 to 16,000, 300 % apart",
        "chosen and measured on the same runs",
    ],
)
def test_what_makes_a_comparison_unfair_is_said(report, text):
    assert any(text in warning for warning in report.warnings)


def test_unequal_seeds_that_were_asked_for_are_no_failures(make_trial, tmp_path):
    for rank, seeds in ((4, (1, 2)), (8, (1, 2, 3))):
        for seed in seeds:
            make_trial(tmp_path / "s" / f"{rank}_{seed}", rank=rank, seed=seed)
    assert "cells have unequally many seeds" in analyse([tmp_path / "s"]).warnings


def test_intervals_of_one_seed_a_cell_are_said_to_be_of_rows(make_trial, tmp_path):
    for rank in (4, 8):
        make_trial(tmp_path / "s" / str(rank), rank=rank)
    assert "Intervals are for new validation rows of these very runs" in notes(analyse([tmp_path / "s"]))[0]


def test_the_way_to_the_first_step_costs_no_trial_more_than_another(make_trial, tmp_path):
    for seed, (whole, start) in enumerate([(30.0, 25.0), (5.0, 0.5)]):
        folder = make_trial(tmp_path / "s" / str(seed), seed=seed, lr=10.0**-seed)
        told = json.loads((folder / "summary.json").read_text()) | {"wall_time_s": whole, "startup_time_s": start}
        (folder / "summary.json").write_text(json.dumps(told))
    report = analyse([tmp_path / "s"])
    assert sorted(budget(one.cell, "wall_time_s") for one in report.comparison.board) == [4.5, 5.0]


def test_an_edge_in_the_learning_rate_is_flagged(make_trial, tmp_path):
    for number, lr in enumerate((1e-4, 1e-3)):
        for seed in (1, 2):
            make_trial(tmp_path / "s" / f"{number}_{seed}", lr=lr, seed=seed, loss=lr + seed)
    report = analyse([tmp_path / "s"])
    assert report.methods[0].edges == ["lr=0.0001 is the lowest tried"]


def test_the_axis_that_matters_has_the_variance(report):
    shares = dict(report.importance)
    assert shares["optim.lr"] > 0.8 and 0.05 < shares["tuner.rank"] < 0.2 and sum(shares.values()) == pytest.approx(1)


def test_noise_of_seeds_and_of_one_seed_repeated(make_trial, tmp_path):
    for number, (seed, loss) in enumerate([(1, 1.0), (2, 1.4), (1, 1.1)]):
        make_trial(tmp_path / "s" / str(number), seed=seed, loss=loss)
    noise = analyse([tmp_path / "s"]).comparison.noise
    assert noise.seed_sd == pytest.approx(0.4 / math.sqrt(2)) and noise.repeats == 1
    assert noise.repeat_sd == pytest.approx(0.1 / math.sqrt(2))


def test_higher_is_better_for_all_but_losses(sweep):
    report = analyse([sweep], metric="val/exact_match")
    assert not report.comparison.lower_is_better


def test_a_running_sweep_is_shown_and_not_counted(make_trial, tmp_path):
    make_trial(tmp_path / "s" / "0", seed=1)
    make_trial(tmp_path / "s" / "1", seed=2, status="running", steps=10)
    make_trial(tmp_path / "s" / "2", seed=3, status="waiting")
    report = analyse([tmp_path / "s"])
    assert report.counts == {"completed": 1, "running": 1, "waiting": 1}
    assert [one.seeds for one in report.comparison.board] == [[1]]
    assert math.isnan(report.comparison.board[0].chance)


def test_the_choice_among_equals_gains_nothing_on_other_data():
    """Winner's curse: of 20 equal rates the best mean is far below 0, and what others choose is not."""
    rng = np.random.default_rng(1)
    best, measured = [], []
    for _ in range(300):
        scores = rng.normal(size=(20, 3, 1)) + 0.5 * rng.normal(size=(20, 3, 40))
        best.append(scores.mean((1, 2)).min())
        measured.append(honest(scores, lower=True))
    assert np.mean(best) < -0.9 and abs(np.mean(measured)) < 3 * np.std(measured) / math.sqrt(300)


def test_the_command_writes_all(sweep, tmp_path, capsys):
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "27 trials: 25 completed, 1 diverged, 1 failed" in out and "DivergedError: step 7" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"report_{name}.png" for name in ("intervals", "rates", "heat", "cost", "losses")}
    assert names == pictures | {"report.csv", "report.html"}
    rows = list(csv.DictReader((tmp_path / "out" / "report.csv").read_text().splitlines()))
    assert len(rows) == 27 and rows[8]["status"] == "diverged" and rows[26]["tuner.rank"] == "16"
    assert rows[7]["group"] and float(rows[7]["val/loss"]) == analyse([sweep]).trials[7].values["val/loss"]


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--metric", "val/x"], "--metric=val/x: no trial has it; there are val/exact_match, val/loss"),
        (["--tuned", "optim.x"], "--tuned=optim.x: is no axis; there are tuner.rank, optim.lr"),
        (["--what"], "unrecognized arguments: --what"),
        (["missing"], "missing: no such folder"),
    ],
)
def test_mistakes_are_told(sweep, capsys, flags, reason):
    assert main([str(sweep), "--no-pictures", *flags]) == 2
    assert reason in capsys.readouterr().err


def test_without_a_folder_nothing_is_compared(capsys):
    assert main([]) == 2 and "no folder given" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "report.csv" not in capsys.readouterr().err
    with pytest.raises(UserError, match="no such folder"):
        analyse([Path("nowhere")])
