"""FourierFT (Gao et al., arXiv 2405.03003): W x + scaling Re(F^-1(S)) x, S zero but at n trained entries.

F^-1 is the two-dimensional inverse Fourier transform. Where the entries lie is drawn once, alike for all layers of a
shape; each layer trains n_frequency values. Deviation: they start at zero, so that the model starts unchanged;
`init=normal` is the paper's start, which at its scaling of 300 only wide layers survive. Training steps make the update
by a real transform, see `spectral.py`, which says what a step costs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.targeted import TargetedConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


class Start(Enum):
    """What the trained entries start at."""

    zero = "zero"
    normal = "normal"


@dataclass(kw_only=True, slots=True)
class FourierftConfig(TargetedConfig):
    """FourierFT; defaults of ms-swift."""

    size: ClassVar[str] = "n_frequency"
    name: str = "fourierft"
    n_frequency: int = 2000
    """Trained entries of each layer's spectrum; at most inputs x outputs."""
    scaling: float = 300.0
    """Factor on the update. A layer's update shrinks with inputs x outputs, which it has to make up for."""
    random_loc_seed: int = 777
    """Seed of where the entries lie, apart from the run's seed."""
    init: Start = Start.zero
    """Start of the entries: zero, or normal as in the paper, where the model starts changed."""

    def trained_in(self, inputs: int, outputs: int) -> int:
        """Returns the parameters of a layer."""
        return self.n_frequency

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        if self.n_frequency < 1:
            raise reject("tuner.n_frequency", self.n_frequency, "must be 1 or more")
        if not 0 < self.scaling < math.inf:
            raise reject("tuner.scaling", self.scaling, "must be more than 0")
        if not 0 <= self.random_loc_seed < 2**63:
            raise reject("tuner.random_loc_seed", self.random_loc_seed, "is a seed: 0 or more, below 2**63")


@register("tuner", FourierftConfig)
def build(config: FourierftConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts FourierFT into the linear layers of the trainable components.

    Args:
        config: Number of entries, scale and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: For the device.

    Raises:
        UserError: A layer has fewer weights than n_frequency.
    """
    from peft import FourierFTConfig

    from harness.tuner.peft_adapter import wrap
    from harness.tuner.spectral import transform_real
    from harness.tuner.target import target_sizes

    for name, (inputs, outputs) in target_sizes(loaded.model, config, policy).items():
        if config.n_frequency > inputs * outputs:
            remedy = f"is more than the {inputs * outputs} entries of {name}"
            raise reject("tuner.n_frequency", config.n_frequency, remedy)
    with _one_draw_a_size():
        tuned = wrap(
            loaded,
            policy,
            config,
            FourierFTConfig,
            n_frequency=config.n_frequency,
            scaling=config.scaling,
            random_loc_seed=config.random_loc_seed,
            init_weights=config.init is Start.zero,
        )
    layers: list[Any] = list(tuned.model.modules())
    for layer in layers:
        if hasattr(layer, "fourierft_spectrum"):
            # No buffers in PEFT: they would be copied to the device in every forward pass, which waits for it.
            layer.indices = {adapter: places.to(outlook.device) for adapter, places in layer.indices.items()}
    transform_real(tuned.model)
    return tuned


@contextmanager
def _one_draw_a_size() -> Iterator[None]:
    """Lets PEFT draw the places of a layer's entries once for all layers of its size.

    It permutes all entries of a weight, from one seed for all layers: a second or more for each of 4B's 252 layers,
    of which five sizes differ.
    """
    import torch

    original = torch.randperm
    drawn: dict[tuple[int, int], torch.Tensor] = {}

    def randperm(size: int, *, generator: torch.Generator) -> torch.Tensor:
        key = size, generator.initial_seed()
        if key not in drawn:
            drawn[key] = original(size, generator=generator)
        return drawn[key]

    torch.randperm = randperm  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randperm = original
