"""Bone (Kang, arXiv 2409.15371), in PEFT as MiSS: inputs are summed in blocks of `rank`, W x + D^T sum_j x_j.

D has `rank` rows and a column an output, starts at zero, and stands in for a B A whose A is fixed: rank x outputs
parameters a layer. `init=bat` makes the update depend on the weight, W_ij (I + D_i) + D_i for every block of
rank x rank, with as many parameters. `init=mini` repeats `mini_rank` columns over the outputs: rank x mini_rank
parameters.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.errors import reject
from harness.registry import register
from harness.tuner.low_rank import check_dropout
from harness.tuner.targeted import TargetedConfig

if TYPE_CHECKING:
    from harness.freeze.policy import Policy
    from harness.model.loading import Loaded
    from harness.tuner.outlook import Outlook
    from harness.tuner.tuned import Tuned


_INITS: dict[str, bool | str] = {"true": True, "false": False, "bat": "bat", "mini": "mini"}
"""PEFT's values by ours."""


@dataclass(kw_only=True, slots=True)
class BoneConfig(TargetedConfig):
    """Bone; defaults of PEFT, which are the paper's."""

    size: ClassVar[str] = "rank"
    name: str = "bone"
    rank: int = 64
    """Size of the blocks that inputs are summed in; at most the inputs of a layer."""
    init: str = "true"
    """Variant: true (starts unchanged), false (starts at random), bat (blocks of the weight), mini (fewer columns)."""
    mini_rank: int = 1
    """Columns of D that init=mini repeats; must divide the outputs of every layer."""
    dropout: float = 0.0
    """Probability of dropping an input of the adapter, 0 to 1; not with init=bat, which has no input of its own."""

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        # YAML and the command line read true as a boolean, which a string field gets as True.
        self.init = self.init.lower()
        if self.init not in _INITS:
            raise reject("tuner.init", self.init, f"known: {', '.join(_INITS)}")
        for key in ("rank", "mini_rank"):
            if getattr(self, key) < 1:
                raise reject(f"tuner.{key}", getattr(self, key), "must be 1 or more")
        if self.mini_rank != 1 and self.init != "mini":
            raise reject("tuner.mini_rank", self.mini_rank, "takes effect with tuner.init=mini only; leave it out")
        if self.dropout and self.init == "bat":
            raise reject("tuner.dropout", self.dropout, "can not take effect with tuner.init=bat; set 0")
        check_dropout(self.dropout)


@register("tuner", BoneConfig)
def build(config: BoneConfig, loaded: "Loaded", policy: "Policy", outlook: "Outlook") -> "Tuned":
    """Puts Bone into the linear layers of the trainable components.

    Args:
        config: Rank, variant and targets.
        loaded: The frozen base model.
        policy: Where adapters may go.
        outlook: Not looked at.

    Raises:
        UserError: A layer is smaller than the rank, or can not be cut into equal blocks where the variant asks for it.
    """
    from peft import MissConfig

    from harness.tuner.peft_adapter import wrap
    from harness.tuner.target import target_sizes

    for name, (inputs, outputs) in target_sizes(loaded.model, config, policy).items():
        _check(config, name, inputs, outputs)
    return wrap(
        loaded,
        policy,
        config,
        MissConfig,
        r=config.rank,
        miss_dropout=config.dropout,
        mini_r=config.mini_rank,
        init_weights=_INITS[config.init],
    )


def _check(config: BoneConfig, name: str, inputs: int, outputs: int) -> None:
    if config.rank > inputs:
        raise reject("tuner.rank", config.rank, f"is more than the {inputs} inputs of {name}")
    if config.init == "bat" and (inputs % config.rank or outputs % config.rank):
        remedy = f"does not divide the {inputs} inputs and {outputs} outputs of {name}, which tuner.init=bat needs"
        raise reject("tuner.rank", config.rank, remedy)
    if config.init == "mini" and outputs % config.mini_rank:
        raise reject("tuner.mini_rank", config.mini_rank, f"does not divide the {outputs} outputs of {name}")
