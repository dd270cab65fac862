"""What every strategy's builder takes and returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from harness.trainer.module import TrainingModule


class Weight(NamedTuple):
    """What a strategy may know of a parameter."""

    values: int
    dims: int
    trains: bool


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a strategy may know of a run."""

    world_size: int = 1
    """Processes of the run."""
    device_type: str = "cpu"
    """cuda or cpu."""
    max_grad_norm: float | None = None
    """Limit on the gradients' global norm; None: none."""
    skips_parameters: bool = False
    """Whether a step may leave trained parameters without gradients."""
    trained_share: float = 1.0
    """Bytes of the weights that train over those of all."""
    layer: tuple[Weight, ...] = ()
    """Parameters of the largest decoder layer, adapters included."""
    compiled: bool = False
    """Whether layers and blocks are compiled."""


@dataclass(slots=True)
class Parallel:
    """A strategy of Lightning's, and what training has to do otherwise under it. The defaults are those of DDP."""

    lightning: Any = "auto"
    """For Lightning's Trainer."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What is in effect, as plain data, for strategy.json."""
    sharded: bool = False
    """Weights are split over the ranks: all run the same modules in the same order, or they wait for ever."""
    shard: Callable[[Any], None] | None = None
    """Splits the weights of a TrainingModule, in place."""
    root: Callable[[Any, bool], nn.Module | None] = lambda module, stepping: None
    """Takes a TrainingModule and whether Lightning is in a training step. Returns the module that has to be called
    around what the model does, with a function and its arguments; None: the function can be called as it is."""
    clip: Callable[[list[nn.Parameter], float], Tensor | None] = lambda parameters, limit: (
        torch.nn.utils.clip_grad_norm_(parameters, limit).detach()
    )
    """Scales gradients down to a global norm and returns what theirs was; None: the step itself does that."""
    average: Callable[[list[Tensor]], None] | None = None
    """Averages gradients over the ranks, in place, before anything reads them; None: the backward pass has done so."""
    divides_loss: bool = False
    """The strategy divides a loss by the number of micro-batches of a step, as Lightning has done already."""
    norm: Callable[[], float] | None = None
    """Returns the gradients' norm after a step that clipped by itself."""
    gradient: Callable[[nn.Parameter], Tensor | None] = lambda parameter: parameter.grad
    """Returns the whole gradient of a parameter. Called on every rank."""
    gather: Callable[[Any], None] | None = None
    """Gives the first rank a TrainingModule with the weights that its export reads, whole and on the CPU, after
    training. Called on every rank."""


def replace_weights(module: "TrainingModule", whole: Callable[[nn.Parameter], Tensor], keep: bool) -> None:
    """Puts whole weights on the CPU in the place of what a module has, tied ones once.

    Those that an adapter's export does not read become shapes without values (on torch's meta device): most of the
    model, and whatever wants them all the same fails.

    Args:
        module: Changed in place where this rank keeps the weights.
        whole: Returns the whole of a parameter; called on every rank in the same order.
        keep: Whether this rank keeps them.
    """
    done: dict[int, tuple[nn.Parameter, nn.Parameter | None]] = {}
    unread = _unread(module)
    for part in module.modules():
        replaced = dict(part._parameters)
        for name, parameter in replaced.items():
            if parameter is None:
                continue
            if id(parameter) not in done:
                new = None
                if id(parameter) not in unread:
                    value = whole(parameter)
                    new = nn.Parameter(value.detach().cpu(), parameter.requires_grad) if keep else None
                elif keep:
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    value = torch.empty(shape, dtype=parameter.dtype, device="meta")
                    new = nn.Parameter(value, requires_grad=False)
                # The old one stays referred to, or another could get its id.
                done[id(parameter)] = parameter, new
            replaced[name] = done[id(parameter)][1]
        if keep:
            part._parameters = replaced


def _unread(module: "TrainingModule") -> set[int]:
    """Returns the ids of frozen weights of layers and blocks, where an adapter alone is exported.

    PEFT writes biases and whole copies of modules as well, with what is frozen of them.
    """
    if getattr(module.config.tuner, "exports_model", False):
        return set()
    tuned = module.tuned
    towers: Any = tuned.base.model
    blocks = [*towers.language_model.layers, *towers.visual.blocks]
    within = {id(parameter) for block in blocks for parameter in block.parameters()}
    written = module.trainable_names | tuned.adapter
    own = {
        id(parameter)
        for name, parameter in tuned.model.named_parameters(remove_duplicate=False)
        if name in written or ".modules_to_save." in name or name.endswith(".bias")
    }
    return within - own
