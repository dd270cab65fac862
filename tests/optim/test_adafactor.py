import pytest
import torch

from harness.errors import UserError
from harness.optim.adafactor import AdafactorConfig, build


def rms(value):
    return value.square().mean().sqrt()


@pytest.mark.parametrize("scale_parameter", [False, True])
def test_updates_follow_algorithms_4_and_5_of_the_paper(make_problem, scale_parameter):
    problem = make_problem()
    expected, seconds = problem.values(), {}
    problem.train(build(AdafactorConfig(scale_parameter=scale_parameter), problem.groups), range(5))
    for step in range(5):
        beta2 = 1 - (step + 1) ** -0.8
        for name, g in problem.gradients(step).items():
            square = g.square() + 1e-30
            old = seconds.get(name, torch.zeros_like(g))
            if g.ndim == 1:
                seconds[name] = beta2 * old + (1 - beta2) * square
                second, decay = seconds[name], 0.0
            else:
                # Rows and columns are means of running means: of the whole matrix, by linearity.
                seconds[name] = beta2 * old + (1 - beta2) * square
                rows, columns = seconds[name].mean(1, keepdim=True), seconds[name].mean(0, keepdim=True)
                second, decay = rows * columns / rows.mean(), 0.1
            update = g / second.sqrt()
            update = update / max(1.0, rms(update))
            rate = 1e-2 * (max(1e-3, rms(expected[name])) if scale_parameter else 1.0)
            expected[name] -= rate * (update + decay * expected[name])
    for name, value in problem.values().items():
        torch.testing.assert_close(value, expected[name], atol=1e-7, rtol=1e-6)


def test_state_of_a_matrix_is_a_row_and_a_column(make_problem):
    problem = make_problem()
    optimizer = build(AdafactorConfig(), problem.groups)
    problem.train(optimizer, range(1))
    state = optimizer.state[next(iter(problem.parameters.values()))]
    assert sum(value.numel() for key, value in state.items() if key.startswith("exp_avg")) == 6 + 4


def test_an_adapter_that_starts_at_zero_has_the_whole_rate(make_problem):
    """LoRA's B; torch's Adafactor would multiply the rate by 1e-3 here."""
    problem = make_problem(weight_decay=0.0)
    for parameter in problem.parameters.values():
        parameter.data.zero_()
    problem.train(build(AdafactorConfig(), problem.groups), range(1))
    matrix = next(iter(problem.parameters.values()))
    assert rms(matrix.detach()) == pytest.approx(1e-2, rel=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta1": 1.0}, r"optim\.beta1=1\.0: must be in \[0, 1\)"),
        ({"decay_rate": 0.8}, r"optim\.decay_rate=0\.8: must be in"),
        ({"clip_threshold": 0.0}, r"optim\.clip_threshold=0\.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AdafactorConfig(**settings)
