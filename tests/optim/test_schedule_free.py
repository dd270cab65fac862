import pytest
import torch

from harness.errors import UserError
from harness.optim.schedule import ScheduleConfig, ScheduleName, build_schedule
from harness.optim.schedule_free import ScheduleFreeConfig, build

STEPS, WARMUP = 8, 3


def test_weights_are_an_average_of_the_iterates_by_algorithm_1_of_the_paper(make_problem):
    problem = make_problem()
    optimizer = build(ScheduleFreeConfig(), problem.groups)
    # What is not there yet is made by torch when a state is loaded in parts.
    assert not optimizer.state
    warm_up = ScheduleConfig(name=ScheduleName.constant_with_warmup, warmup_steps=WARMUP)
    schedule = build_schedule(optimizer, warm_up, STEPS)
    z, x, second, total = problem.values(), problem.values(), {}, 0.0
    for step in range(STEPS):
        problem.train(optimizer, range(step, step + 1))
        schedule.step()
        rate = 1e-2 * min(step / WARMUP, 1)
        total += rate**2
        c = rate**2 / total if total else 0.0
        for name, g in problem.gradients(step).items():
            y = 0.1 * z[name] + 0.9 * x[name]
            second[name] = 0.999 * second.get(name, torch.zeros_like(g)) + 0.001 * g.square()
            direction = g / ((second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            z[name] = z[name] - rate * (direction + (0.1 if g.ndim > 1 else 0.0) * y)
            x[name] = (1 - c) * x[name] + c * z[name]
    for name, value in problem.values().items():
        torch.testing.assert_close(value, 0.1 * z[name] + 0.9 * x[name], atol=1e-9, rtol=0)
    optimizer.eval()
    for name, value in problem.values().items():
        torch.testing.assert_close(value, x[name], atol=1e-9, rtol=0)


def test_it_warms_up_and_does_not_decay_unless_told(make_config):
    schedule = make_config("optim=schedule_free").optim.schedule
    assert (schedule.name, schedule.warmup_ratio) == (ScheduleName.constant_with_warmup, 0.05)
    plain = make_config("optim=schedule_free", "optim.schedule.name=constant", "optim.schedule.warmup_ratio=0")
    assert plain.optim.schedule.name is ScheduleName.constant


@pytest.mark.parametrize("name", sorted({item.name for item in ScheduleName} - {"constant", "constant_with_warmup"}))
def test_schedules_that_decay_are_refused(make_config, name):
    with pytest.raises(UserError, match=rf"optim\.schedule\.name={name}: schedule_free needs a rate that does not"):
        make_config("optim=schedule_free", f"optim.schedule.name={name}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta1": 0.0}, r"optim\.beta1=0\.0: must be above 0 and below 1"),
        ({"beta2": 1.0}, r"optim\.beta2=1\.0: must be in \[0, 1\)"),
        ({"eps": 0.0}, r"optim\.eps=0\.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ScheduleFreeConfig(**settings)


def test_weights_of_16_bits_are_refused(make_problem):
    problem = make_problem(dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"tuner\.dtype=bfloat16: .*up_proj\.weight trains in it.* train in float32"):
        build(ScheduleFreeConfig(), problem.groups)


def test_a_tuner_that_reads_gradients_after_the_step_is_refused(make_config):
    with pytest.raises(UserError, match=r"optim=schedule_free: leaves no gradients behind its step.*tuner=adalora"):
        make_config("optim=schedule_free", "tuner=adalora")
