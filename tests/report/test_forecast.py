import re

import pytest

from harness.report.forecast import forecast


def test_one_seed_can_call_nothing_real():
    assert "what differs may differ in these runs alone" in forecast(9, 1)


def test_more_seeds_see_smaller_differences():
    sizes = [float(re.search(r"from ([\d.]+) standard", forecast(9, seeds))[1]) for seeds in (2, 3, 5, 10)]
    assert sizes == sorted(sizes, reverse=True) and 1 < sizes[-1] < 3


def test_a_pilot_gives_the_unit(sweep):
    found = re.search(r"from ([\d.]+) standard.*, ([\d.]+) of val/loss", forecast(9, 3, sweep))
    assert float(found[2]) == pytest.approx(float(found[1]) * 0.00866, rel=0.1)


def test_a_pilot_of_single_seeds_tells_nothing_more(make_trial, tmp_path):
    make_trial(tmp_path / "s" / "0")
    assert "no cell of two seeds" in forecast(4, 3, tmp_path / "s")
