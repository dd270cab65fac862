"""Overrides of a command line as what a sampler samples: a distribution a key, in Hydra's own words.

tuner.rank=4,8,16                      one of them, in no order
tuner.rank=range(4,17,4)               4, 8, 12, 16
tuner.rank=interval(4,64)              a whole number, for both ends are
optim.lr=interval(1e-5,1e-3)           a number
optim.lr=tag(log,interval(1e-5,1e-3))  a number, each decade as likely as another
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from harness import compose
from harness.errors import UserError, reject

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, "BaseDistribution"]]:
    """Returns the overrides that are the same for all trials, and the distribution of each other key.

    Raises:
        UserError: Nothing is to be sampled, or something that can not be.
    """
    fixed, space = [], {}
    for item in compose.parse(overrides):
        if item.is_sweep_override():
            space[item.get_key_element()] = _distribution(item)
        elif not item.get_key_element().lstrip("+~").startswith("hydra"):
            fixed.append(str(item.input_line))
    if not space:
        raise UserError("hydra/sweeper=optuna: no key is to be sampled; give one, as optim.lr=interval(1e-4,1e-2)")
    if "seed" in space:
        raise reject("seed", "...", "is nothing to optimise; run the best trials again with -m seed=1,2,3")
    return fixed, space


def _distribution(item: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = item.value()
    if isinstance(sweep, IntervalSweep):
        low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
        assert low is not None and high is not None
        if not low < high or (is_log and low <= 0):
            raise reject(item.key_or_group, f"{low:g} to {high:g}", "must grow, and be above 0 with tag(log, ...)")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(float(low), float(high), log=is_log)
    if isinstance(sweep, RangeSweep) and all(isinstance(end, int) for end in (sweep.start, sweep.stop, sweep.step)):
        values = sweep.range()
        return IntDistribution(values[0], values[-1], step=int(sweep.step))  # type: ignore[arg-type, index]
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        return CategoricalDistribution([str(value) for value in item.sweep_string_iterator()])
    raise reject(item.key_or_group, str(item.input_line).partition("=")[2], "is nothing that can be sampled")
