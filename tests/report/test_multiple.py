import math

import pytest

from harness.report.multiple import MAX_GROUPS, holm, letters


def test_holm_on_the_textbook_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    assert holm([0.01, 0.005], tests=4) == pytest.approx([0.03, 0.02])


def test_an_unknown_p_is_no_test():
    adjusted = holm([0.02, math.nan, 0.03])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1])


@pytest.mark.parametrize(
    "count, different, expected",
    [
        (3, [], ["a", "a", "a"]),
        (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        (3, [(0, 2)], ["a", "ab", "b"]),
        (4, [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        # The second differs from the third, and the first from neither.
        (3, [(1, 2)], ["ab", "a", "b"]),
    ],
)
def test_letters(count, different, expected):
    assert letters(count, different) == expected


def test_two_share_a_letter_just_where_they_do_not_differ():
    different = [(a, b) for b in range(9) for a in range(b) if (3 * a + 5 * b) % 7 < 3]
    found = letters(9, different)
    for b in range(9):
        for a in range(b):
            assert bool(set(found[a]) & set(found[b])) == ((a, b) not in different)


def test_more_groups_than_letters_are_no_letters():
    assert letters(30, [(a, b) for b in range(30) for a in range(b)]) == [""] * 30 and MAX_GROUPS == 26
