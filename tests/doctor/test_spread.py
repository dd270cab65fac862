from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.doctor import spread


def test_figures_of_a_hundred_numbers():
    found = spread.measure(np.arange(1, 101, dtype=np.int32))
    assert found == {"min": 1, "median": 50.5, "mean": 50.5, "p95": pytest.approx(95.05), "max": 100, "total": 5050}


def test_total_does_not_overflow():
    assert spread.measure(np.full(3, 2**30, dtype=np.int32))["total"] == 3 * 2**30


def test_nothing_has_no_figures_and_no_bins():
    empty = np.empty(0, dtype=np.int64)
    assert spread.measure(empty) is None
    assert spread.histograms({"train": empty}) == {}


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=200),
    st.lists(st.integers(0, 10**6), max_size=50),
)
def test_each_number_is_in_one_bin_and_splits_share_their_bins(train, val):
    values = {name: np.array(array, dtype=np.int64) for name, array in (("train", train), ("val", val))}
    found = spread.histograms(values)
    bounds = {tuple((low, high) for low, high, _ in bins) for bins in found.values()}
    assert len(bounds) == 1
    (shared,) = bounds
    assert all(high == low for (_, high), (low, _) in pairwise(shared))
    assert len(shared) <= 13
    for name, bins in found.items():
        counts = [int(((values[name] >= low) & (values[name] < high)).sum()) for low, high, _ in bins]
        assert [count for *_, count in bins] == counts
        assert sum(counts) == len(values[name])


def test_rare_long_ones_share_the_last_bin():
    values = np.array([*range(1, 1000), 50_000])
    (bins,) = spread.histograms({"train": values}).values()
    assert bins[-1][1] == 50_001 and bins[-1][2] < 100
    assert len(bins) <= 12


def test_bars_are_as_long_as_their_share():
    text = spread.bars(
        "tokens", {"train": [(0, 10, 30), (10, 20, 15), (20, 21, 0)], "val": [(0, 10, 1), (10, 20, 0), (20, 21, 0)]}
    )
    title, heads, first, second, third = text.splitlines()
    assert title == "tokens" and heads.split() == ["train", "val"]
    assert first.split() == ["0", "to", "9", "30", "█" * 30, "1", "█" * 30]
    assert second.split() == ["10", "to", "19", "15", "█" * 15, "0"]
    assert third.split() == ["20", "0", "0"]


def test_table_has_a_row_for_each_quantity_that_there_is(capsys):
    spread.show("sizes", "per image", {"width": spread.measure(np.array([1000, 2001])), "height": None}, total=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sizes" and lines[1].split() == ["per", "image", "min", "median", "mean", "p95", "max"]
    assert lines[3].split() == ["width", "1,000", "1,500", "1,500", "1,951", "2,001"]
    assert not any("height" in line for line in lines)
