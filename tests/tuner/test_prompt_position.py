from types import SimpleNamespace

import pytest
import torch

from harness.errors import UserError
from harness.tuner.prompt_position import PromptPositions


def edited(positions, language, **call):
    positions.of_call(language, (), call)
    return positions._hand_over(language, (), (torch.zeros(1), torch.zeros(1))).edited.int().tolist()


@pytest.mark.parametrize(
    ("prefix", "suffix", "expected"),
    [
        (1, 0, [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]),
        (0, 2, [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]),
        (2, 2, [[0, 0, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]),
    ],
)
def test_prompts_of_a_generation_are_padded_on_either_side(prefix, suffix, expected):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    call = {"inputs_embeds": torch.zeros(3, 5, 2), "attention_mask": mask}
    assert edited(PromptPositions(prefix, suffix), None, **call) == expected


def test_what_follows_a_prompt_is_left_alone():
    past = SimpleNamespace(get_seq_length=lambda: 5)
    call = {"inputs_embeds": torch.zeros(2, 1, 2), "attention_mask": torch.ones(2, 6), "past_key_values": past}
    assert edited(PromptPositions(9, 9), None, **call) == [[0], [0]]


def test_without_a_mask_all_is_prompt():
    assert edited(PromptPositions(1, 1), None, input_ids=torch.zeros(1, 4)) == [[1, 0, 0, 1]]


def test_a_mask_of_tokens_by_tokens_is_refused():
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(UserError, match=r"tuner\.prefix, tuner\.suffix: need a mask of shape \(rows, tokens\)"):
        edited(PromptPositions(1, 1), None, inputs_embeds=torch.zeros(2, 5, 2), attention_mask=mask)
