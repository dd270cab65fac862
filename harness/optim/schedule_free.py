"""Schedule-Free AdamW: an average of all iterates in place of a decaying rate (Defazio et al., arXiv 2405.15682).

Gradients are taken at y = (1 - b1) z + b1 x; z steps as AdamW without first moment; x = (1 - c) x + c z is the average,
with c = lr^2 / (sum of lr^2), lr being the highest rate so far (algorithm 1).

Training and checkpoints hold y. Validation and export see x, which y and z give (`TrainingModule.evaluating`).
Deviation: warm-up is our schedule's, which the logged rates show, and so begins at 0; the library's begins at lr / W.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.optim.config import OptimConfig, check_betas, check_eps
from harness.optim.footprint import Footprint, Trained
from harness.optim.schedule import ScheduleConfig, ScheduleName
from harness.registry import register

if TYPE_CHECKING:
    from schedulefree import AdamWScheduleFree

ALLOWED = (ScheduleName.constant, ScheduleName.constant_with_warmup)


def _warm_up() -> ScheduleConfig:
    return ScheduleConfig(name=ScheduleName.constant_with_warmup, warmup_ratio=0.05)


@dataclass(kw_only=True, slots=True)
class ScheduleFreeConfig(OptimConfig):
    """AdamW without a decaying rate: the weights to use are an average over the run. State as AdamW's."""

    rewrites_gradients: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    averages: ClassVar[bool] = True

    name: str = "schedule_free"
    beta1: float = 0.9
    """Share of the average in the point where gradients are taken, in (0, 1); 0.95 to 0.98 for long runs."""
    beta2: float = 0.999
    """Decay of the running mean of squared gradients, in [0, 1)."""
    eps: float = 1e-8
    """Added to the denominator, above 0."""
    schedule: ScheduleConfig = field(default_factory=_warm_up)
    """constant or constant_with_warmup: the average takes the place of a decay. Warm-up stays useful."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OptimConfig.__post_init__(self)
        check_betas(("beta2", self.beta2))
        check_eps(self.eps)
        if not 0 < self.beta1 < 1:
            raise reject("optim.beta1", self.beta1, "must be above 0 and below 1")
        if self.schedule.name not in ALLOWED:
            remedy = "schedule_free needs a rate that does not decay: use constant or constant_with_warmup"
            raise reject("optim.schedule.name", self.schedule.name.name, remedy)

    def footprint(self, trained: Trained) -> Footprint:
        """Returns what gradients and state will take, and the direction that the library makes of all weights."""
        found = OptimConfig.footprint(self, trained)
        return found._replace(update=found.gradients)


@register("optim", ScheduleFreeConfig)
def build(config: ScheduleFreeConfig, groups: list[dict[str, Any]]) -> "AdamWScheduleFree":
    """Builds the optimiser, ready to train.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.

    Raises:
        UserError: A trained weight has less than 32 bits.
    """
    from schedulefree import AdamWScheduleFree

    for name, parameter in (item for group in groups for item in group["params"]):
        if parameter.itemsize < 4:
            dtype = str(parameter.dtype).removeprefix("torch.")
            remedy = f"{name} trains in it, and rounds an average's small steps away; train in float32, or use adamw"
            raise reject("tuner.dtype", dtype, remedy)
    optimizer = AdamWScheduleFree(groups, betas=(config.beta1, config.beta2), eps=config.eps)
    optimizer.train()
    # It has left an empty state for each parameter, which torch.distributed.checkpoint takes for one to load into.
    optimizer.state.clear()
    return optimizer
