"""`tuner.budget`: the size of an adapter from the number of parameters that it may train."""

from dataclasses import fields
from typing import Any

from harness.errors import reject


def check_budget(tuner: Any) -> None:
    """Refuses a budget for a method without a size, or beside the size.

    Raises:
        UserError: It can not be solved for.
    """
    if tuner.budget is None:
        return
    if tuner.size is None:
        raise reject("tuner.budget", tuner.budget, f"tuner={tuner.name} has no size to be solved for; leave it out")
    if tuner.budget < 1:
        raise reject("tuner.budget", tuner.budget, "must be 1 or more")
    default = next(item.default for item in fields(tuner) if item.name == tuner.size)
    if (size := getattr(tuner, tuner.size)) != default:
        raise reject(f"tuner.{tuner.size}", size, f"follows from tuner.budget={tuner.budget}: give one of the two")
