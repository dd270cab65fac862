import json

import pytest
import torch

from harness.trainer.items import ItemLosses, merge, write


def test_losses_go_to_the_row_whose_tokens_they_are_of(make_batch):
    """A pair of batches, in which one row stands twice: its samples count together."""
    first, second = make_batch(0, 1), make_batch(2, 0)
    losses = ItemLosses()
    losses.add(torch.arange(1.0, 1 + first.num_supervised), first)
    losses.add(torch.full((second.num_supervised,), 10.0), second)
    found = losses.take()
    each = first.num_supervised // 2
    a, b = first.origins
    assert found[b] == (sum(range(each + 1, 2 * each + 1)), each)
    assert found[a] == (sum(range(1, each + 1)) + 10.0 * each, 2 * each)
    assert found[second.origins[0]] == (10.0 * each, each)


def test_no_rows_make_no_sums():
    assert ItemLosses().take() == {}


def test_ranks_are_added_up():
    assert merge([{"a": (1.0, 2)}, {"b": (3.0, 1), "a": (0.5, 1)}]) == {"a": (1.5, 3), "b": (3.0, 1)}


@pytest.mark.parametrize("answered", [True, False])
def test_the_file_has_an_entry_for_each_row(tmp_path, answered):
    answers = [{"origin": "b", "exact_match": True}, {"origin": "b", "exact_match": False}] if answered else []
    write(tmp_path / "items.json", 7, {"a": (1.23456789, 2), "b": (3.0, 1)}, answers)
    content = json.loads((tmp_path / "items.json").read_text())
    expected = {"step": 7, "origin": ["a", "b"], "loss": [1.234568, 3.0], "tokens": [2, 1]}
    assert content == expected | ({"exact_match": [None, 0.5]} if answered else {})
