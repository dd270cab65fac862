import pytest
import torch

from harness.errors import UserError
from harness.optim.lion import LionConfig, build


def test_updates_follow_algorithm_2_of_the_paper(make_problem):
    problem = make_problem()
    expected, means = problem.values(), dict.fromkeys(problem.parameters, 0.0)
    problem.train(build(LionConfig(beta1=0.8, beta2=0.95), problem.groups), range(6))
    for step in range(6):
        for name, g in problem.gradients(step).items():
            decay = 0.1 if g.ndim > 1 else 0.0
            direction = torch.sign(0.8 * means[name] + (1 - 0.8) * g)
            expected[name] -= 1e-2 * (direction + decay * expected[name])
            means[name] = 0.95 * means[name] + (1 - 0.95) * g
    for name, value in problem.values().items():
        torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=0)


def test_without_decay_every_value_moves_by_the_rate(make_problem):
    problem = make_problem(weight_decay=0.0)
    before = problem.values()
    problem.train(build(LionConfig(), problem.groups), range(1))
    for name, value in problem.values().items():
        torch.testing.assert_close((value - before[name]).abs(), torch.full_like(value, 1e-2))


def test_keeps_one_mean_a_value_in_its_type(make_problem):
    problem = make_problem(dtype=torch.bfloat16)
    optimizer = build(LionConfig(), problem.groups)
    problem.train(optimizer, range(1))
    for parameter in problem.parameters.values():
        (mean,) = optimizer.state[parameter].values()
        assert (mean.shape, mean.dtype) == (parameter.shape, torch.bfloat16)


@pytest.mark.parametrize("settings", [{"beta1": 1.0}, {"beta2": -0.1}])
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=r"optim\.beta\d=.*: must be in \[0, 1\)"):
        LionConfig(**settings)
