import io

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from harness.optim.plateau import tell
from harness.optim.schedule import ScheduleConfig, ScheduleName, build_schedule

PEAK = 1e-3
# Better, a hair better, worse, NaN, long without progress, then better again.
LOSSES = [2.0, 1.0, 0.99999, 1.5, 1.0, float("nan"), 1.0, 1.0, 1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4]


def make(config: ScheduleConfig) -> torch.optim.lr_scheduler.LambdaLR:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)
    return build_schedule(optimizer, config, 100)


def rates(schedule: torch.optim.lr_scheduler.LambdaLR, values: list[float]) -> list[float]:
    seen = []
    for value in values:
        tell(schedule, value)
        schedule.optimizer.step()
        schedule.step()
        seen.append(schedule.get_last_lr()[0])
    return seen


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 2, "min_lr_ratio": 0.2},
        {"factor": 0.5, "patience": 0, "cooldown": 2},
        {"factor": 0.1, "patience": 1, "threshold": 0.2},
    ],
)
def test_rates_equal_those_of_torch(mode: str, options: dict[str, float]) -> None:
    """A metric where higher is better arrives with its sign turned."""
    ours = make(ScheduleConfig(name=ScheduleName.reduce_lr_on_plateau, **options))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)
    theirs = {key: value for key, value in options.items() if key != "min_lr_ratio"}
    floor = PEAK * options.get("min_lr_ratio", 0.0)
    reference = ReduceLROnPlateau(optimizer, mode=mode, min_lr=floor, eps=0.0, **theirs)
    expected = []
    for value in LOSSES:
        reference.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    sign = 1 if mode == "min" else -1
    got = rates(ours, [sign * value for value in LOSSES])
    assert got == pytest.approx(expected, rel=1e-12)
    assert len(set(got)) > 2


def test_warm_up_comes_first_and_other_schedules_do_not_listen() -> None:
    schedule = make(ScheduleConfig(name=ScheduleName.reduce_lr_on_plateau, warmup_steps=4, factor=0.5, patience=0))
    assert [factor(2) for factor in schedule.lr_lambdas] == [0.5]
    assert (tell(schedule, 1.0), tell(schedule, 1.0)) == (False, True)
    assert [schedule.lr_lambdas[0](step) for step in (2, 4, 99)] == [0.25, 0.5, 0.5]
    assert not tell(make(ScheduleConfig()), 1.0)


def test_state_is_plain_and_holds_all_that_counts() -> None:
    config = ScheduleConfig(name=ScheduleName.reduce_lr_on_plateau, factor=0.5, patience=1, cooldown=1)
    schedule = make(config)
    rates(schedule, LOSSES[:8])
    buffer = io.BytesIO()
    torch.save(schedule.state_dict(), buffer)
    rest = rates(schedule, LOSSES[8:])
    resumed = make(config)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert rates(resumed, LOSSES[8:]) == rest
