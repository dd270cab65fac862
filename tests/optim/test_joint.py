import io

import pytest
import torch
from torch.optim import SGD, AdamW

from harness.optim.joint import Joint


def make(problem):
    matrices, vectors = problem.groups
    return Joint([SGD([matrices], momentum=0.9), AdamW([vectors])])


def test_steps_as_its_parts_do_and_runs_the_closure_once(make_problem):
    ours, theirs, calls = make_problem(), make_problem(), []
    joint = make(ours)
    parts = [SGD([theirs.groups[0]], momentum=0.9), AdamW([theirs.groups[1]])]
    for step in range(3):

        def closure(step=step):
            calls.append(step)
            for name, gradient in ours.gradients(step).items():
                ours.parameters[name].grad = gradient
            return 0.5

        assert joint.step(closure) == 0.5
        for part in parts:
            theirs.train(part, range(step, step + 1))
    assert calls == [0, 1, 2]
    for name, value in ours.values().items():
        assert torch.equal(value, theirs.values()[name])


@pytest.mark.parametrize("loaded", [False, True])
def test_rates_and_state_are_shared_both_ways_after_a_load_too(make_problem, loaded):
    problem = make_problem()
    joint = make(problem)
    problem.train(joint, range(1))
    if loaded:
        joint.load_state_dict(joint.state_dict())
    joint.param_groups[0]["lr"] = 0.5
    assert joint.parts[0].param_groups[0]["lr"] == 0.5
    matrix = joint.param_groups[0]["params"][0]
    # As Lightning moves state between devices.
    joint.state[matrix] = {"momentum_buffer": torch.ones_like(matrix)}
    assert torch.equal(joint.parts[0].state[matrix]["momentum_buffer"], torch.ones_like(matrix))
    assert [len(part.param_groups) for part in joint.parts] == [1, 1]


def test_goes_on_from_its_state_bit_by_bit(make_problem):
    whole, resumed = make_problem(), make_problem()
    first, second = make(whole), make(resumed)
    whole.train(first, range(3))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for name, value in whole.values().items():
        resumed.parameters[name].data.copy_(value)
    for problem, optimizer in ((whole, first), (resumed, second)):
        problem.train(optimizer, range(3, 6))
    for name, value in whole.values().items():
        assert torch.equal(value, resumed.values()[name])
