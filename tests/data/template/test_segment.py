from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.template.segment import PLACEHOLDER, Segment, cut_answers, divide, merge, without_media


def test_neighbours_of_equal_weight_are_one_segment_and_empty_ones_none():
    pieces = [("", 1.0), ("a", 0.0), ("b", 0.0), ("", 2.0), ("c", 1.0), ("", 0.0), ("d", 1.0), ("e", 0.0)]
    assert merge(pieces) == [Segment("ab", 0.0), Segment("cd", 1.0), Segment("e", 0.0)]
    assert merge([]) == [] and merge([("", 1.0)]) == []


@given(st.lists(st.tuples(st.text(max_size=3), st.sampled_from([0.0, 1.0, 2.0]))))
def test_merging_keeps_text_and_weights(pieces):
    before = [weight for text, weight in pieces for _ in text]
    merged = merge(pieces)
    assert "".join(item.text for item in merged) == "".join(text for text, _ in pieces)
    assert [item.weight for item in merged for _ in item.text] == before
    assert all(one.weight != other.weight for one, other in pairwise(merged))


def test_images_and_videos_lose_their_weight_and_text_keeps_its_own():
    image, video = PLACEHOLDER.values()
    pieces = without_media([(f"a{image}b{video}{image}", 2.0), ("c", 1.0)])
    assert merge(pieces) == [
        Segment("a", 2.0),
        Segment(image, 0.0),
        Segment("b", 2.0),
        Segment(video + image, 0.0),
        Segment("c", 1.0),
    ]


def test_answers_are_cut_behind_their_headers():
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\nA<|im_end|>\n<|im_start|>assistant\n<|im_end|>"
    around, answers = cut_answers(text)
    assert answers == ["\nA", ""]
    assert around == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>assistant\n", ""]
    assert cut_answers("no answer") == (["no answer"], [])
    assert cut_answers("<|im_start|>assistant\nA") is None


@pytest.mark.parametrize(
    ("answer", "texts", "parts"),
    [
        ("abc", ["abc"], ["abc"]),
        ("rewritten", ["abc"], ["rewritten"]),
        ("abcd", ["a", "b", "cd"], ["a", "b", "cd"]),
        ("a\nb\n\nc", ["a", "b", "c"], ["a", "\nb", "\n\nc"]),
        ("a\n\nb", ["a\n", "b"], ["a\n", "\nb"]),
        ("think\n\na b", ["thought a", "b"], ["think\n\na ", "b"]),
        ("b", ["left out", "b"], ["", "b"]),
        ("a\nb", ["thought a", "b"], ["a", "\nb"]),
        ("\nb", ["left out", "b"], ["", "\nb"]),
        ("b", ["", "b"], ["", "b"]),
        ("aaa", ["a", "a", "a"], ["a", "a", "a"]),
        ("a\n", ["a", ""], ["a", "\n"]),
        ("ac", ["a", "b", "c"], None),
        ("ab-", ["a", "b"], None),
    ],
)
def test_parts_are_found_from_the_end(answer, texts, parts):
    assert divide(answer, texts) == parts


@given(st.lists(st.text(alphabet="ab\n", max_size=4), min_size=1, max_size=5))
def test_what_was_not_rewritten_is_found_again(texts):
    assert "".join(divide("".join(texts), texts)) == "".join(texts)
    tight = [text.strip() or "x" for text in texts]
    assert divide("".join(tight), tight) == tight
