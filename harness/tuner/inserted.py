"""What the adapters of our own have, whose places are not a choice of linear layers: what trains beside, and dtype."""

from dataclasses import dataclass, field

from harness.tuner.trained_dtype import TrainedDtype


@dataclass(kw_only=True, slots=True)
class InsertedConfig:
    """Shared fields; a method extends it by fields only."""

    modules_to_save: list[str] = field(default_factory=list)
    """Modules that train themselves beside the adapter, saved with it, as suffixes: `visual.merger`."""
    dtype: TrainedDtype = TrainedDtype.float32
    """Storage type of what trains; float32 keeps small updates that bfloat16 would round away."""
