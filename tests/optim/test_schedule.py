import io
import math
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from harness.errors import UserError
from harness.optim.curve import Ramp
from harness.optim.schedule import ScheduleConfig, ScheduleName, build_schedule, multiplier, num_warmup_steps

TOTAL = 50
PEAK = 1e-3
WARMUP = 7

# A schedule, our settings, and what transformers calls the same.
CASES = [
    (ScheduleName.cosine, {}, {}),
    (ScheduleName.cosine, {"num_cycles": 1.5}, {"num_cycles": 1.5}),
    (ScheduleName.linear, {}, {}),
    (ScheduleName.constant_with_warmup, {}, {}),
    (ScheduleName.cosine_with_restarts, {}, {}),
    (ScheduleName.cosine_with_restarts, {"num_cycles": 3}, {"num_cycles": 3}),
    (ScheduleName.polynomial, {}, {"lr_end": 0.0}),
    (ScheduleName.polynomial, {"power": 2.0, "min_lr_ratio": 0.01}, {"power": 2.0, "lr_end": 0.01 * PEAK}),
    (ScheduleName.cosine_with_min_lr, {}, {"min_lr_rate": 0.1}),
    (ScheduleName.cosine_with_min_lr, {"min_lr_ratio": 0.25}, {"min_lr_rate": 0.25}),
    (ScheduleName.cosine_with_min_lr, {"min_lr": 2e-4, "num_cycles": 1.5}, {"min_lr": 2e-4, "num_cycles": 1.5}),
    (ScheduleName.polynomial, {"min_lr": 1e-7}, {}),
    (ScheduleName.inverse_sqrt, {}, {}),
    (ScheduleName.inverse_sqrt, {"timescale": 3}, {"timescale": 3}),
    (ScheduleName.cosine_warmup_with_min_lr, {}, {"min_lr_rate": 0.1}),
    (
        ScheduleName.cosine_warmup_with_min_lr,
        {"warmup_lr_ratio": 0.2, "min_lr": 0.0},
        {"warmup_lr_rate": 0.2, "min_lr": 0.0},
    ),
    (ScheduleName.warmup_stable_decay, {}, {"num_decay_steps": TOTAL // 10}),
    (
        ScheduleName.warmup_stable_decay,
        {"decay_steps": 9, "stable_steps": 11, "min_lr_ratio": 0.3, "decay_shape": Ramp.linear},
        {"num_decay_steps": 9, "num_stable_steps": 11, "min_lr_ratio": 0.3, "decay_type": "linear"},
    ),
    *[
        (
            ScheduleName.warmup_stable_decay,
            {"decay_steps": 20, "min_lr_ratio": 0.05, "warmup_shape": ours, "decay_shape": ours, "num_cycles": 1.5},
            {"num_decay_steps": 20, "min_lr_ratio": 0.05, "warmup_type": name, "decay_type": name, "num_cycles": 1.5},
        )
        for ours, name in ((Ramp.cosine, "cosine"), (Ramp.one_minus_sqrt, "1-sqrt"))
    ],
]
STARTS_AT_ZERO = [
    case
    for case in CASES
    if case[0] is not ScheduleName.cosine_warmup_with_min_lr
    and not (case[0] is ScheduleName.warmup_stable_decay and case[1])
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
    with warnings.catch_warnings():
        # transformers says that of two lengths the stable one holds, as it does here.
        warnings.filterwarnings("ignore", message="Both num_training_steps and num_stable_steps")
        reference = get_scheduler(
            name.value,
            make_optimizer(),
            num_warmup_steps=warmup,
            num_training_steps=TOTAL,
            scheduler_specific_kwargs=theirs,
        )
    # The rate behind the last step is used by none, and there transformers' waves go on.
    got = rates(build_schedule(make_optimizer(), config, TOTAL), TOTAL)[:TOTAL]
    assert got == pytest.approx(rates(reference, TOTAL)[:TOTAL], rel=1e-12, abs=1e-15)


def test_every_schedule_is_compared_with_transformers() -> None:
    elsewhere = {ScheduleName.constant, ScheduleName.reduce_lr_on_plateau}
    assert {name for name, _, _ in CASES} | elsewhere == set(ScheduleName)


def test_every_schedule_of_transformers_is_here_but_one() -> None:
    """greedy came after the spec, and raises rates by the training loss of single steps."""
    assert {item.value for item in SchedulerType} - {item.value for item in ScheduleName} <= {"greedy"}


def test_constant_equals_that_of_transformers() -> None:
    config = ScheduleConfig(name=ScheduleName.constant)
    reference = get_scheduler("constant", make_optimizer())
    assert rates(build_schedule(make_optimizer(), config, TOTAL), TOTAL) == rates(reference, TOTAL)


@pytest.mark.parametrize(("name", "options", "_"), STARTS_AT_ZERO)
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
        (ScheduleName.warmup_stable_decay, 0),
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


def test_the_last_step_of_a_cosine_ahead_has_the_last_rate() -> None:
    config = ScheduleConfig(name=ScheduleName.cosine_warmup_with_min_lr, warmup_steps=4)
    assert [multiplier(config, step, TOTAL) for step in (0, 3, TOTAL - 1, TOTAL)] == [0.25, 1, 0.1, 0.1]


def test_a_lowest_rate_holds_for_groups_of_any_peak() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1e-3, 1e-5), strict=True)])
    config = ScheduleConfig(name=ScheduleName.cosine_with_min_lr, min_lr=2e-6)
    schedule = build_schedule(optimizer, config, TOTAL)
    rates(schedule, TOTAL)
    assert schedule.get_last_lr() == pytest.approx([2e-6, 2e-6])
    with pytest.raises(UserError, match=r"min_lr=0\.01: the lowest peak rate is 0\.001"):
        build_schedule(make_optimizer(), ScheduleConfig(name=ScheduleName.polynomial, min_lr=0.01), TOTAL)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_steps": 48}, r"decay_steps=48: with 3 steps of warm-up and 0 stable ones it ends after the run's 50"),
        ({"decay_steps": 40, "stable_steps": 8}, r"decay_steps=40: with 3 steps of warm-up and 8 stable ones"),
    ],
)
def test_phases_longer_than_the_run_are_refused(options: dict[str, int], message: str) -> None:
    config = ScheduleConfig(name=ScheduleName.warmup_stable_decay, warmup_steps=3, **options)
    with pytest.raises(UserError, match=message):
        build_schedule(make_optimizer(), config, TOTAL)


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
        ({"power": 2.0}, r"power=2\.0: cosine does not use it; used by polynomial"),
        ({"min_lr_ratio": 0.1}, r"min_lr_ratio=0\.1: cosine does not use it; used by polynomial, cosine_with_min_lr"),
        ({"min_lr": 1e-6}, r"min_lr=1e-06: cosine does not use it; used by polynomial"),
        ({"warmup_shape": Ramp.linear}, r"warmup_shape=.*: cosine does not use it; used by warmup_stable_decay"),
        ({"decay_shape": Ramp.linear}, r"decay_shape=.*: cosine does not use it; used by warmup_stable_decay"),
        ({"name": ScheduleName.linear, "num_cycles": 2}, r"num_cycles=2: linear does not use it; used by cosine"),
        ({"num_cycles": 0.0}, r"num_cycles=0\.0: must be above 0"),
        ({"name": ScheduleName.cosine_with_restarts, "num_cycles": 1.5}, r"num_cycles=1\.5: must be a whole number"),
        (
            {"name": ScheduleName.polynomial, "min_lr": 1e-6, "min_lr_ratio": 0.1},
            r"min_lr=1e-06: stands in place of min_lr_ratio",
        ),
        ({"name": ScheduleName.polynomial, "min_lr": -1.0}, r"min_lr=-1\.0: must be 0 or more"),
        ({"name": ScheduleName.inverse_sqrt, "timescale": 0}, r"timescale=0: must be 1 or more"),
        ({"name": ScheduleName.cosine_warmup_with_min_lr, "warmup_lr_ratio": 1.0}, r"warmup_lr_ratio=1\.0: must be in"),
        ({"name": ScheduleName.warmup_stable_decay, "decay_steps": -1}, r"decay_steps=-1: must be 0 or more"),
        ({"name": ScheduleName.warmup_stable_decay, "stable_steps": -1}, r"stable_steps=-1: must be 0 or more"),
        ({"name": ScheduleName.reduce_lr_on_plateau, "factor": 1.0}, r"factor=1\.0: must be above 0 and below 1"),
        ({"name": ScheduleName.reduce_lr_on_plateau, "patience": -1}, r"patience=-1: must be 0 or more"),
        ({"name": ScheduleName.reduce_lr_on_plateau, "threshold": 1.0}, r"threshold=1\.0: must be in"),
        ({"name": ScheduleName.reduce_lr_on_plateau, "cooldown": -1}, r"cooldown=-1: must be 0 or more"),
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
