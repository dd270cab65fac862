import numpy as np

from harness.data.truncation import cut

IDS = np.arange(10, dtype=np.int32)
SPANS = np.array([[4, 6], [8, 10]], dtype=np.int32)


def _cut(max_length, from_left, protected=()):
    mask = np.zeros(10, dtype=bool)
    mask[list(protected)] = True
    parts = cut(IDS, SPANS, mask, max_length, from_left)
    return None if parts is None else (parts[0].tolist(), parts[1].tolist())


def test_right_keeps_the_beginning_and_shortens_the_last_span():
    assert _cut(9, from_left=False) == (list(range(9)), [[4, 6], [8, 9]])
    assert _cut(5, from_left=False) == (list(range(5)), [[4, 5]])


def test_left_keeps_the_end_and_moves_the_spans():
    assert _cut(8, from_left=True) == (list(range(2, 10)), [[2, 4], [6, 8]])


def test_a_first_token_is_never_supervised_since_nothing_predicts_it():
    assert _cut(6, from_left=True) == ([4, 5, 6, 7, 8, 9], [[1, 2], [4, 6]])
    assert _cut(5, from_left=True) == ([5, 6, 7, 8, 9], [[3, 5]])


def test_protected_tokens_stay_in_place():
    assert _cut(6, from_left=True, protected=(1, 2)) == ([1, 2, 6, 7, 8, 9], [[4, 6]])
    assert _cut(4, from_left=False, protected=(6, 7)) == ([0, 1, 6, 7], [])


def test_too_many_protected_tokens():
    assert _cut(2, from_left=True, protected=(1, 2, 3)) is None
    assert _cut(3, from_left=True, protected=(1, 2, 3)) == ([1, 2, 3], [])
