import io
import math
import subprocess
import sys

import pytest
import torch
from transformers import get_scheduler

from harness.errors import UserError
from harness.optim.schedule import ScheduleConfig, ScheduleName, build_schedule, multiplier, num_warmup_steps

TOTAL = 50
PEAK = 1e-3
WARMUP = 7

# A schedule, our settings, and what transformers calls the same.
CASES = [
    (ScheduleName.cosine, {}, {}),
    (ScheduleName.linear, {}, {}),
    (ScheduleName.constant_with_warmup, {}, {}),
    (ScheduleName.cosine_with_restarts, {}, {}),
    (ScheduleName.cosine_with_restarts, {"num_cycles": 3}, {"num_cycles": 3}),
    (ScheduleName.polynomial, {}, {"lr_end": 0.0}),
    (ScheduleName.polynomial, {"power": 2.0, "min_lr_ratio": 0.01}, {"power": 2.0, "lr_end": 0.01 * PEAK}),
    (ScheduleName.cosine_with_min_lr, {}, {"min_lr_rate": 0.1}),
    (ScheduleName.cosine_with_min_lr, {"min_lr_ratio": 0.25}, {"min_lr_rate": 0.25}),
]


def make_optimizer() -> torch.optim.AdamW:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=PEAK)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return [*seen, schedule.get_last_lr()[0]]


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize(("name", "ours", "theirs"), CASES)
def test_rates_equal_those_of_transformers(
    name: ScheduleName, ours: dict[str, float], theirs: dict[str, float], warmup: int
) -> None:
    config = ScheduleConfig(name=name, warmup_steps=warmup, **ours)
    reference = get_scheduler(
        name.value,
        make_optimizer(),
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
        scheduler_specific_kwargs=theirs,
    )
    got = rates(build_schedule(make_optimizer(), config, TOTAL), TOTAL)
    assert got == pytest.approx(rates(reference, TOTAL), rel=1e-12, abs=1e-15)


def test_every_schedule_is_compared_with_transformers() -> None:
    assert {name for name, _, _ in CASES} | {ScheduleName.constant} == set(ScheduleName)


def test_constant_equals_that_of_transformers() -> None:
    config = ScheduleConfig(name=ScheduleName.constant)
    reference = get_scheduler("constant", make_optimizer())
    assert rates(build_schedule(make_optimizer(), config, TOTAL), TOTAL) == rates(reference, TOTAL)


@pytest.mark.parametrize(("name", "options", "_"), CASES)
def test_warm_up_starts_at_zero_and_peaks_at_its_end(name: ScheduleName, options: dict[str, float], _: object) -> None:
    config = ScheduleConfig(name=name, warmup_steps=WARMUP, **options)
    values = [multiplier(config, step, TOTAL) for step in range(TOTAL + 1)]
    assert values[0] == 0
    assert values[WARMUP] == 1
    assert max(values) == 1


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (ScheduleName.cosine, 0),
        (ScheduleName.linear, 0),
        (ScheduleName.cosine_with_restarts, 0),
        (ScheduleName.polynomial, 0),
        (ScheduleName.cosine_with_min_lr, 0.1),
        (ScheduleName.constant, 1),
        (ScheduleName.constant_with_warmup, 1),
    ],
)
def test_reaches_its_end_at_the_last_step_and_stays_there(name: ScheduleName, end: float) -> None:
    config = ScheduleConfig(name=name)
    assert multiplier(config, TOTAL, TOTAL) == end
    assert multiplier(config, TOTAL + 30, TOTAL) == end
    if end < 1:
        assert end < multiplier(config, TOTAL - 1, TOTAL)


def test_restarts_return_to_the_peak() -> None:
    config = ScheduleConfig(name=ScheduleName.cosine_with_restarts, num_cycles=5)
    assert [multiplier(config, step, TOTAL) for step in (0, 10, 20, 30, 40)] == [1.0] * 5


@pytest.mark.parametrize(("ratio", "total", "steps"), [(0.05, 225, 12), (0.05, 20, 1), (0.1, 3, 1), (0.0, 10, 0)])
def test_warmup_ratio_is_rounded_up(ratio: float, total: int, steps: int) -> None:
    assert num_warmup_steps(ScheduleConfig(warmup_ratio=ratio), total) == steps == math.ceil(ratio * total)


def test_groups_keep_their_own_peaks() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1e-3, 1e-5), strict=True)])
    schedule = build_schedule(optimizer, ScheduleConfig(warmup_steps=2), 10)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-6]


def test_state_is_plain_and_resumes_to_the_same_rates() -> None:
    config = ScheduleConfig(warmup_ratio=0.1)
    optimizer = make_optimizer()
    schedule = build_schedule(optimizer, config, TOTAL)
    rates(schedule, 20)
    buffer = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    rest = rates(schedule, TOTAL - 20)

    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other = make_optimizer()
    resumed = build_schedule(other, config, TOTAL)
    other.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["schedule"])
    assert rates(resumed, TOTAL - 20) == rest


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.schedule\.warmup_steps=60: the run has 50 steps"):
        build_schedule(make_optimizer(), ScheduleConfig(warmup_steps=60), TOTAL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_ratio": 1.0}, r"optim\.schedule\.warmup_ratio=1\.0: must be in \[0, 1\)"),
        ({"warmup_ratio": -0.1}, r"warmup_ratio=-0\.1"),
        ({"warmup_ratio": math.nan}, r"warmup_ratio=nan"),
        ({"warmup_steps": -1}, r"warmup_steps=-1: must be 0 or more"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, r"warmup_steps=5: set warmup_ratio=0"),
        ({"name": ScheduleName.constant, "warmup_steps": 5}, r"name=constant: .*constant_with_warmup"),
        ({"name": ScheduleName.constant, "warmup_ratio": 0.1}, r"name=constant: .*constant_with_warmup"),
        ({"num_cycles": 2}, r"num_cycles=2: cosine does not use it; only cosine_with_restarts does"),
        ({"power": 2.0}, r"power=2\.0: cosine does not use it; only polynomial does"),
        ({"min_lr_ratio": 0.1}, r"min_lr_ratio=0\.1: cosine does not use it; only polynomial, cosine_with_min_lr does"),
        ({"name": ScheduleName.cosine_with_restarts, "num_cycles": 0}, r"num_cycles=0: must be 1 or more"),
        ({"name": ScheduleName.polynomial, "power": 0.0}, r"power=0\.0: must be above 0"),
        ({"name": ScheduleName.cosine_with_min_lr, "min_lr_ratio": 1.0}, r"min_lr_ratio=1\.0: must be in"),
    ],
)
def test_settings_that_can_not_take_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScheduleConfig(**settings)


def test_configs_import_without_torch() -> None:
    code = "import sys, harness.optim.adamw, harness.optim.schedule; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
