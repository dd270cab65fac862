"""Checkpointing changes memory, not gradients, and reaches the tower it is meant for."""

import pytest
import torch

from harness import registry
from harness.memory.standard import StandardConfig
from harness.model.forward import loss_sum, supervised_logits


def gradients(tuned, batch):
    torch.manual_seed(0)
    loss_sum(supervised_logits(tuned.base, batch), batch).backward()
    return {name: p.grad for name, p in tuned.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("choice", [["tuner=lora", "freeze=vit_aligner"], ["tuner=full", "freeze=none"]])
def test_gradients_are_the_same_with_checkpointing(make_tuned, make_config, make_batch, choice):
    batch = make_batch(0, 1)
    plain, recomputed = make_tuned(*choice), make_tuned(*choice)
    recomputed.model.load_state_dict(plain.model.state_dict())
    registry.build("memory", make_config("memory.checkpointing=true").memory, recomputed.base)
    plain.model.train(), recomputed.model.train()
    expected, got = gradients(plain, batch), gradients(recomputed, batch)
    assert expected.keys() == got.keys() and all(grad is not None for grad in got.values())
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name], msg=name)


@pytest.mark.parametrize(
    ("llm", "vit", "calls"), [(True, None, 8), (True, False, 4), (False, True, 4), (False, None, 0)]
)
def test_each_tower_is_recomputed_apart(make_tuned, make_batch, monkeypatch, llm, vit, calls):
    recomputed = []

    def counting(function, *args, **kwargs):
        assert kwargs.pop("use_reentrant") is False
        recomputed.append(function)
        return function(*args, **kwargs)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", counting)
    tuned = make_tuned("tuner=full", "freeze=none")
    registry.build("memory", StandardConfig(checkpointing=llm, vit_checkpointing=vit), tuned.base)
    tuned.model.train()
    supervised_logits(tuned.base, make_batch(0))
    assert len(recomputed) == calls
