import sys

import pytest
import torch

from harness.errors import UserError
from harness.optim.paged_adamw_8bit import PagedAdamW8bitConfig, build

BIG = "model.language_model.layers.0.mlp.down_proj.weight"
SHAPES = {BIG: (512, 256)}
"""131,072 values: bitsandbytes pages from 100,000 on."""


def test_without_the_library_it_says_how_to_get_it(make_problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optim=paged_adamw_8bit: bitsandbytes is not installed .*; pip install -c"):
        build(PagedAdamW8bitConfig(), make_problem().groups)


def test_on_the_cpu_it_is_refused(make_problem):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match=r"optim=paged_adamw_8bit: pages the memory of a GPU.* use adamw_8bit"):
        build(PagedAdamW8bitConfig(), make_problem().groups)


@pytest.mark.gpu
def test_large_state_is_paged_after_a_resume_too(make_problem):
    """Lightning moves loaded state to the GPU; the first step brings it back into managed memory."""
    pytest.importorskip("bitsandbytes")
    from lightning.fabric.utilities.optimizer import _optimizer_to_device

    runs = []
    for _ in range(2):
        problem = make_problem(shapes=SHAPES, dtype=torch.float32)
        for parameter in problem.parameters.values():
            parameter.data = parameter.data.cuda()
        runs.append((problem, build(PagedAdamW8bitConfig(), problem.groups)))
    (whole, first), (resumed, second) = runs

    def train(problem, optimizer, steps):
        for step in steps:
            for name, gradient in problem.gradients(step).items():
                problem.parameters[name].grad = gradient.cuda()
            optimizer.step()

    train(whole, first, range(3))
    second.load_state_dict(first.state_dict())
    _optimizer_to_device(second, torch.device("cuda"))
    for name, value in whole.values().items():
        resumed.parameters[name].data.copy_(value)
    train(whole, first, range(3, 6))
    train(resumed, second, range(3, 6))
    for name, value in whole.values().items():
        assert torch.equal(value, resumed.values()[name]), name
    for problem, optimizer in runs:
        state = optimizer.state[problem.parameters[BIG]]
        assert all(state[key].is_paged for key in ("state1", "state2"))
