"""BOFT (Liu et al., arXiv 2311.06243): s * W (B_m ... B_1 x), every B orthogonal, block-diagonal up to a permutation.

Each block is Cayley's (I - Q)(I + Q)^-1 of the skew-symmetric part Q of a trained matrix that starts at zero; m is
n_butterfly_factor, s one scale an output (PEFT's addition), 1 at the start: m x inputs x block_size + outputs
parameters a layer, where the paper counts only the block_size (block_size - 1) / 2 of a block that differ.

PEFT multiplies dense matrices of inputs x inputs, permutations among them: each layer costs several times what its own
weight does. With one factor training steps go another way, see `rotated.py`; evaluation and more factors go PEFT's.
Permutations of one size are held once here, not once a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.low_rank import check_dropout
from harness.tuner.targeted import TargetedConfig

if TYPE_CHECKING:
    import torch

    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


@dataclass(kw_only=True, slots=True)
class BoftConfig(TargetedConfig):
    """BOFT; defaults of ms-swift, which are PEFT's."""

    size: ClassVar[str] = "block_size"
    size_divides_inputs: ClassVar[bool] = True
    name: str = "boft"
    block_size: int = 4
    """Size of the orthogonal blocks, must divide the inputs of every layer; 0 to give block_num."""
    block_num: int = 0
    """Instead of block_size: blocks of a layer, must divide its inputs; 0 to give block_size."""
    n_butterfly_factor: int = 1
    """Factors m; 1 is OFT. More needs PEFT's CUDA extension, and block_size x 2^(m - 1) to divide the inputs."""
    dropout: float = 0.0
    """Share of a layer's blocks that stand still in a step, 0 to 1, rounded down to whole blocks."""

    def trained_in(self, inputs: int, outputs: int) -> int:
        """Returns the parameters of a layer: blocks of all factors, and a scale an output."""
        return self.n_butterfly_factor * inputs * self.block_size + outputs

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        for key in ("block_size", "block_num"):
            if getattr(self, key) < 0:
                raise reject(f"tuner.{key}", getattr(self, key), "must be 0 or more")
        if self.block_size and self.block_num:
            remedy = f"stands instead of tuner.block_size={self.block_size}: set that to 0"
            raise reject("tuner.block_num", self.block_num, remedy)
        if not self.block_size and not self.block_num:
            raise reject("tuner.block_size", self.block_size, "give it or tuner.block_num")
        if self.block_size == 1:
            raise reject("tuner.block_size", self.block_size, "has nothing to rotate; set 2 or more")
        if self.n_butterfly_factor < 1:
            raise reject("tuner.n_butterfly_factor", self.n_butterfly_factor, "must be 1 or more")
        check_dropout(self.dropout)


@register("tuner", BoftConfig)
def build(config: BoftConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts BOFT into the linear layers of the trainable components.

    Args:
        config: Blocks, factors and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: For the device.

    Raises:
        UserError: A layer can not be cut into such blocks, or more than one factor is asked for without the extension.
    """
    from peft import BOFTConfig

    from harness.tuner.peft_adapter import wrap
    from harness.tuner.rotated import rotate_inputs
    from harness.tuner.target import target_sizes

    for name, (inputs, _) in target_sizes(loaded.model, config, policy).items():
        _check(config, name, inputs)
    with _extension(config, outlook.device):
        tuned = wrap(
            loaded,
            policy,
            config,
            BOFTConfig,
            boft_block_size=config.block_size,
            boft_block_num=config.block_num,
            boft_n_butterfly_factor=config.n_butterfly_factor,
            boft_dropout=config.dropout,
        )
    shared: dict[Any, Any] = {}
    layers: list[Any] = list(tuned.model.modules())
    for layer in layers:
        if hasattr(layer, "boft_P"):
            # On the device ahead of the model, which leaves what is there alone; elsewhere each would get its own copy.
            ones = layer.boft_P.to(outlook.device, loaded.model.dtype)
            layer.boft_P = shared.setdefault(ones.shape, ones)
    rotate_inputs(tuned.model)
    return tuned


def _check(config: BoftConfig, name: str, inputs: int) -> None:
    key, value = ("block_size", config.block_size) if config.block_size else ("block_num", config.block_num)
    if inputs % value:
        raise reject(f"tuner.{key}", value, f"does not divide the {inputs} inputs of {name}")
    blocks = config.block_num or inputs // config.block_size
    size = inputs // blocks
    if size < 2:
        raise reject(f"tuner.{key}", value, f"leaves blocks of one of the {inputs} inputs of {name}, nothing to rotate")
    if config.n_butterfly_factor > 1 and (size % 2 or blocks % 2 ** (config.n_butterfly_factor - 1)):
        remedy = f"needs even blocks, and 2^(m - 1) to divide their number; {name} has {blocks} of {size}"
        raise reject("tuner.n_butterfly_factor", config.n_butterfly_factor, remedy)
    if config.dropout and not int(config.dropout * blocks):
        raise reject("tuner.dropout", config.dropout, f"is less than one of the {blocks} blocks of {name}")


@contextmanager
def _extension(config: BoftConfig, device: "torch.device") -> Iterator[None]:
    """Lets PEFT look for its CUDA extension once and only for what needs it.

    It would try to compile it anew for each layer, and where that fails take one factor, whatever was asked for.

    Raises:
        UserError: More than one factor, and no extension.
    """
    from peft.tuners.boft import layer as boft

    original, to_matrix, factors = boft.get_fbd_cuda, boft.Linear.perm2mat, config.n_butterfly_factor
    extension = original() if factors > 1 and device.type == "cuda" else None
    if factors > 1 and extension is None:
        remedy = "needs a GPU and PEFT's CUDA extension, which nvcc and ninja build; set 1"
        raise reject("tuner.n_butterfly_factor", factors, remedy)
    boft.get_fbd_cuda = lambda: extension
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def perm2mat(layer: Any, indices: "torch.Tensor") -> "torch.Tensor":
        """PEFT fills the matrix entry by entry, for each layer anew."""
        key = tuple(indices.tolist())
        if key not in known:
            known[key] = to_matrix(layer, indices)
        return known[key]

    boft.Linear.perm2mat = perm2mat  # type: ignore[method-assign]
    try:
        yield
    finally:
        boft.get_fbd_cuda = original
        boft.Linear.perm2mat = to_matrix  # type: ignore[method-assign]
