import pytest
import torch

from harness.errors import UserError
from harness.optim.sgd import SgdConfig, build


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_updates_follow_the_formula(make_problem, momentum, nesterov):
    if nesterov and not momentum:
        pytest.skip("refused")
    problem = make_problem()
    expected, sums = problem.values(), dict.fromkeys(problem.parameters, 0.0)
    problem.train(build(SgdConfig(momentum=momentum, nesterov=nesterov), problem.groups), range(5))
    for step in range(5):
        for name, g in problem.gradients(step).items():
            g = g + (0.1 if g.ndim > 1 else 0.0) * expected[name]
            sums[name] = momentum * sums[name] + g
            expected[name] -= 1e-2 * (g + momentum * sums[name] if nesterov else sums[name])
    for name, value in problem.values().items():
        torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=1e-10)


def test_without_momentum_it_keeps_no_state(make_problem):
    problem = make_problem()
    optimizer = build(SgdConfig(momentum=0.0), problem.groups)
    problem.train(optimizer, range(2))
    assert all(value is None for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"optim\.momentum=1\.0: must be in \[0, 1\)"),
        ({"momentum": 0.0, "nesterov": True}, r"optim\.nesterov=true: has no effect with optim\.momentum=0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SgdConfig(**settings)
