import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.source.selection import Entry, choose, interleave
from harness.errors import UserError


def entry(rows, sample=None):
    return Entry("data.train", "a.jsonl", np.asarray(rows), sample)


def chosen(rows, sample, **how):
    (train,), _ = choose([entry(rows, sample)], 0.0, **({"shuffle": True, "seed": 0} | how))
    return train.tolist()


def test_below_the_size_a_draw_without_replacement():
    draw = chosen(range(100), 30)
    assert len(set(draw)) == 30 and draw == sorted(draw) != list(range(30))
    assert draw == chosen(range(100), 30) != chosen(range(100), 30, seed=1)
    assert chosen(range(100), 30, shuffle=False) == list(range(30))


def test_above_the_size_whole_copies_and_a_draw_for_the_rest():
    counts = np.bincount(chosen(range(10), 34))
    assert sorted(counts.tolist()) == [3] * 6 + [4] * 4
    assert chosen(range(3), 8, shuffle=False) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert chosen(range(3), 3) == chosen(range(3), None) == [0, 1, 2]


@given(
    sizes=st.lists(st.tuples(st.integers(10, 40), st.none() | st.integers(10, 100)), min_size=1, max_size=4),
    ratio=st.floats(0.1, 0.3),
    seed=st.integers(0, 99),
)
def test_no_row_is_on_both_sides_and_all_that_was_asked_for_is_there(sizes, ratio, seed):
    # All entries begin at row 0: they name the same file again and again.
    entries = [entry(range(size), sample) for size, sample in sizes]
    try:
        train, val = choose(entries, ratio, shuffle=True, seed=seed)
    except UserError as error:  # a draw may take all rows of a small entry
        assert len(sizes) > 1 and "leaves no training row" in str(error)
        return
    assert len(set(val.tolist())) == len(val) > 0 and not set(val.tolist()) & set(np.concatenate(train).tolist())
    assert sum(map(len, train)) <= sum(sample or size for size, sample in sizes)
    if len(sizes) == 1:
        size, sample = sizes[0]
        assert len(train[0]) + len(val) == (sample or size)
        assert len(val) == round(min(size, sample or size) * ratio)


def test_the_split_is_the_same_for_the_same_seed_and_keeps_the_order():
    train, val = choose([entry(range(50))], 0.2, shuffle=True, seed=42)
    again = choose([entry(range(50))], 0.2, shuffle=False, seed=42)
    other = choose([entry(range(50))], 0.2, shuffle=True, seed=1)
    assert val.tolist() == again[1].tolist() != other[1].tolist()
    assert sorted([*train[0], *val]) == list(range(50)) and train[0].tolist() == sorted(train[0])


def test_a_side_without_rows():
    with pytest.raises(UserError, match=r"data\.split_ratio=0\.1: leaves one side empty with 2 rows"):
        choose([entry(range(2))], 0.1, shuffle=True, seed=0)
    with pytest.raises(UserError, match=r"data\.split_ratio=0\.9: leaves no training row of a\.jsonl"):
        choose([entry(range(30)), entry(range(30, 31))], 0.9, shuffle=True, seed=0)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=2, max_size=4),
    until_all=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_interleaves_as_datasets_does(sources, until_all, seed):
    import datasets

    lengths = [length for length, _ in sources]
    weights = np.array([weight for _, weight in sources], dtype=float)
    starts = np.cumsum([0, *lengths])
    parts = [datasets.Dataset.from_dict({"row": range(starts[i], starts[i + 1])}) for i in range(len(lengths))]
    theirs = datasets.interleave_datasets(
        parts,
        (weights / weights.sum()).tolist(),
        seed=seed,
        stopping_strategy="all_exhausted" if until_all else "first_exhausted",
    )
    assert interleave(lengths, weights.tolist(), until_all=until_all, seed=seed).tolist() == list(theirs["row"])


def test_weights_that_would_never_end():
    with pytest.raises(UserError, match=r"data\.weights=\[1\.0, 1e-12\]: would need over 2,147,483,648 rows"):
        interleave([5, 5], [1.0, 1e-12], until_all=True, seed=0)
    assert len(interleave([5, 5], [1.0, 1e-12], until_all=False, seed=0)) == 5
