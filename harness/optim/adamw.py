"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).

m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) - lr decay w.
Deviation: as in torch, the decay is scaled by the learning rate, and so follows the schedule.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import reject
from harness.optim.schedule import ScheduleConfig
from harness.registry import register

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

log = logging.getLogger(__name__)

FUSED_DEVICES = frozenset({"cpu", "cuda"})
"""Device types on which torch has a fused AdamW kernel and this project trains."""


@dataclass(kw_only=True, slots=True)
class AdamWConfig:
    """AdamW with a learning rate for each component. Defaults are those of ms-swift 4.6."""

    name: str = "adamw"
    lr: float | None = None
    """Peak learning rate. None: 1e-4 when adapters train, 1e-5 for full fine-tuning."""
    vit_lr: float | None = None
    """Peak learning rate of what trains in the vision tower. None: lr. Refused where the vision tower is frozen."""
    aligner_lr: float | None = None
    """Peak learning rate of what trains in the mergers. None: lr. Refused where the mergers are frozen."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, a step: weights shrink by lr x this. Vectors never decay."""
    beta1: float = 0.9
    """Decay of the running mean of gradients, in [0, 1)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients, in [0, 1); lower follows changes sooner."""
    eps: float = 1e-8
    """Added to the denominator, above 0; larger damps the steps of parameters with tiny gradients."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm where theirs is larger. None or 0: no clipping."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Warm-up and decay of the learning rates."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for key in ("lr", "vit_lr", "aligner_lr"):
            rate = getattr(self, key)
            if rate is not None and not 0 < rate < math.inf:
                raise reject(f"optim.{key}", rate, "must be above 0")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise reject(f"optim.{key}", getattr(self, key), "must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise reject("optim.weight_decay", self.weight_decay, "must be 0 or more")
        if not 0 < self.eps < math.inf:
            raise reject("optim.eps", self.eps, "must be above 0")
        if self.max_grad_norm is not None and not 0 <= self.max_grad_norm < math.inf:
            raise reject("optim.max_grad_norm", self.max_grad_norm, "must be above 0, or null for no clipping")


@register("optim", AdamWConfig)
def build(config: AdamWConfig, model: "nn.Module", lr: float) -> "AdamW":
    """Builds the optimiser over the trainable parameters of a model.

    Args:
        config: Settings; `config.lr` is not read.
        model: The model, frozen and adapted, on the device it trains on.
        lr: Peak learning rate, which the caller resolved from `config.lr` and the tuner.

    Raises:
        UserError: Nothing trains, or `vit_lr` or `aligner_lr` is set for a component that does not.
    """
    from torch.optim import AdamW

    from harness.optim.group import parameter_groups

    groups = parameter_groups(
        model, lr=lr, vit_lr=config.vit_lr, aligner_lr=config.aligner_lr, weight_decay=config.weight_decay
    )
    kernel = choose_kernel(parameter for group in groups for parameter in group["params"])
    optimizer = AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), eps=config.eps, **kernel)
    # The fused kernel would take over fp16's unscaling, after the gradient norm was measured and clipped.
    optimizer._step_supports_amp_scaling = False
    sizes = ", ".join(f"{group['name']} {sum(p.numel() for p in group['params']):,}" for group in groups)
    log.info("AdamW (%s kernel): parameters %s", *kernel, sizes)
    return optimizer


def choose_kernel(parameters: Iterable["nn.Parameter"]) -> dict[str, bool]:
    """Returns `{"fused": True}` where the fused kernel runs on every parameter, else `{"foreach": True}`.

    Fused makes one kernel of the whole update, on CPU too; torch accepts it for floating-point parameters only.
    """
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
