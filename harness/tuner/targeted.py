"""What every adapter has: which modules it goes into, what trains in full beside it, and its dtype."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

from harness.errors import reject
from harness.tuner.budget import check_budget
from harness.tuner.trained_dtype import TrainedDtype

ALL_LINEAR = "all-linear"
"""Every linear layer that the freeze policy leaves free, but the head, as ms-swift's default."""


@dataclass(kw_only=True, slots=True)
class TargetedConfig:
    """Shared fields; a method extends it by fields only."""

    size: ClassVar[str | None] = None
    """Field that a budget is solved for."""
    least_size: ClassVar[int] = 1
    size_divides_inputs: ClassVar[bool] = False
    """Whether that has to divide the inputs of every target."""
    budget: int | None = None
    """Trainable parameters, in place of the method's size (rank, block_size, n_frequency): the largest that trains no
    more. modules_to_save and biases count. alpha stays as it is."""
    target_modules: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """Names as a suffix (`q_proj`, `mlp.up_proj`), or all-linear: all of what is neither frozen nor trained in full."""
    target_regex: str | None = None
    """Instead of target_modules: a regular expression that names of linear layers match in full."""
    layers_to_transform: list[int] | None = None
    """Of the targets, only those in these decoder layers, counted from 0: nothing outside them. Null: no such limit."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules that train themselves beside the adapter, saved with it, as suffixes: `lm_head`, `visual.merger`.

    They must not be frozen, and all-linear leaves them out. A tied head and embedding stay tied: either names both.
    """
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of what trains; float32 keeps small updates that bfloat16 would round away."""

    def __post_init__(self) -> None:
        check_budget(self)
        if not self.target_modules:
            raise reject("tuner.target_modules", [], "name at least one module, or all-linear")
        if self.target_regex is not None and self.target_modules != [ALL_LINEAR]:
            raise reject("tuner.target_regex", self.target_regex, "stands instead of tuner.target_modules: give one")
        if self.layers_to_transform == []:
            raise reject("tuner.layers_to_transform", [], "name at least one decoder layer, or null for all")
        try:
            re.compile(self.target_regex or "")
        except re.error as error:
            raise reject("tuner.target_regex", self.target_regex, f"is no regular expression ({error})") from error
