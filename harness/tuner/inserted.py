"""What the adapters of our own have, whose places are not a choice of linear layers: what trains beside, and dtype."""

from dataclasses import dataclass, field
from typing import ClassVar

from harness.tuner.budget import check_budget
from harness.tuner.trained_dtype import TrainedDtype


@dataclass(kw_only=True, slots=True)
class InsertedConfig:
    """Shared fields; a method extends it by fields only."""

    size: ClassVar[str]
    """Field that a budget is solved for."""
    least_size: ClassVar[int] = 1
    size_divides_inputs: ClassVar[bool] = False
    budget: int | None = None
    """Trainable parameters, in place of the method's size (rank, length): the largest that trains no more.
    modules_to_save count."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules that train themselves beside the adapter, saved with it, as suffixes: `visual.merger`."""
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of what trains; float32 keeps small updates that bfloat16 would round away."""

    def __post_init__(self) -> None:
        check_budget(self)
