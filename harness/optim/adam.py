"""What every optimiser that steps as Adam does has: the decay of its two running means, and its damping."""

from dataclasses import dataclass

from harness.optim.config import OptimConfig, check_betas, check_eps


@dataclass(kw_only=True, slots=True)
class AdamConfig(OptimConfig):
    """Shared fields; an optimiser extends it by fields only."""

    beta1: float = 0.9
    """Decay of the running mean of gradients, in [0, 1)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients, in [0, 1); lower follows changes sooner."""
    eps: float = 1e-8
    """Added to the denominator, above 0; larger damps the steps of parameters with tiny gradients."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        OptimConfig.__post_init__(self)
        check_betas(("beta1", self.beta1), ("beta2", self.beta2))
        check_eps(self.eps)
