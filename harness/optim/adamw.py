"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr decay w.
Deviation: as in torch, the decay is scaled by the learning rate, and so follows the schedule.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.optim.adam import AdamConfig
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

log = logging.getLogger(__name__)

FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Device types on which torch has a fused AdamW kernel and this project trains."""


@dataclass(kw_only=True, slots=True)
class AdamWConfig(AdamConfig):
    """AdamW with a learning rate for each component."""

    elementwise: ClassVar[bool] = True
    name: str = "adamw"


@register("optim", AdamWConfig)
def build(config: AdamWConfig, groups: list[dict[str, Any]]) -> "AdamW":
    """Builds the optimiser.

    Args:
        config: Settings; rates and decay are in the groups.
        groups: What `parameter_groups` returned.
    """
    from torch.optim import AdamW

    kernel = choose_kernel(parameter for group in groups for _, parameter in group["params"])
    optimizer = AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, **kernel)
    # The fused kernel would take over fp16's unscaling, after the gradient norm was measured and clipped.
    optimizer._step_supports_amp_scaling = False
    log.info("AdamW: %s kernel", *kernel)
    return optimizer


def choose_kernel(parameters: Iterable["nn.Parameter"]) -> dict[str, bool]:
    """Returns `{"fused": True}` where the fused kernel runs on every parameter, else `{"foreach": True}`.

    Fused makes one kernel of the whole update, on CPU too; torch accepts it for floating-point parameters only.
    """
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
