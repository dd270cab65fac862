"""How many cores adapters are made with."""

import torch
from torch import nn

from harness.tuner.peft_adapter import few_threads


def test_a_model_on_a_gpu_takes_few_and_one_on_the_cpu_all(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    with few_threads(nn.Linear(2, 2, device="meta")):
        assert taken == [8]
    assert taken == [8, 64]
    with few_threads(nn.Linear(2, 2)):
        assert taken == [8, 64]
