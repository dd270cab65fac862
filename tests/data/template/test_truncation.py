import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.template.truncation import cut, split

NONE = np.empty((0, 2), dtype=np.int64)


def _blocks(*ranges):
    return np.array(ranges, dtype=np.int64).reshape(-1, 2)


def test_text_is_cut_at_the_limit():
    assert cut(10, NONE, 7, from_left=False) == (0, 7)
    assert cut(10, NONE, 7, from_left=True) == (3, 10)


@pytest.mark.parametrize(("max_length", "expected"), [(3, (0, 3)), (4, (0, 3)), (5, (0, 3)), (6, (0, 6)), (7, (0, 7))])
def test_right_drops_an_image_that_does_not_fit_whole(max_length, expected):
    assert cut(10, _blocks((3, 6)), max_length, from_left=False) == expected


@pytest.mark.parametrize(("max_length", "expected"), [(4, (6, 10)), (5, (6, 10)), (6, (6, 10)), (7, (3, 10))])
def test_left_drops_an_image_that_does_not_fit_whole(max_length, expected):
    assert cut(10, _blocks((3, 6)), max_length, from_left=True) == expected


def test_nothing_may_be_left():
    assert cut(10, _blocks((0, 8)), 5, from_left=False) == (0, 0)


def test_split_begins_a_new_piece_before_an_image_that_would_be_cut():
    assert split(12, _blocks((3, 7)), 5) == [(0, 3), (3, 8), (8, 12)]
    assert split(12, _blocks((3, 9)), 5) is None


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=6), st.integers(0, 6), st.integers(6, 20))
def test_pieces_cover_everything_and_cut_no_image(runs, tail, max_length):
    blocks, length = [], 0
    for text, image in runs:
        blocks.append((length + text, length + text + image))
        length += text + image
    length += tail
    pieces = split(length, _blocks(*blocks), max_length)
    assert [token for start, end in pieces for token in range(start, end)] == list(range(length))
    for edge in {edge for piece in pieces for edge in piece}:
        assert not any(start < edge < end for start, end in blocks)
    assert all(end - start <= max_length for start, end in pieces)
