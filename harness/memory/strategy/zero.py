"""What the stages of ZeRO share (Rajbhandari et al., arXiv 1910.02054): settings, and DeepSpeed under Lightning.

DeepSpeed clips gradients and adds up micro-batches by itself. Under bf16 it holds all weights in bfloat16, with a
float32 copy of what trains in its optimiser, which is what is exported.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import reject
from harness.memory.strategy.config import Bytes, Model, StrategyConfig

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks, Weight


@dataclass(kw_only=True, slots=True)
class ZeroConfig(StrategyConfig):
    """Shared fields; a stage extends it by fields only. Defaults are DeepSpeed's, but for the buckets."""

    saves_parts: ClassVar[bool] = True
    flattens: ClassVar[bool] = True
    scales_fp16: ClassVar[bool] = False
    reshards: ClassVar[bool] = False

    overlap_comm: bool = True
    """Reduce gradients while the backward pass goes on."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they come, which keeps memory from breaking into pieces."""
    reduce_bucket_size: int = 200_000_000
    """Values that are reduced at once."""
    allgather_bucket_size: int = 200_000_000
    """Values that are gathered at once."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for key in ("reduce_bucket_size", "allgather_bucket_size"):
            if getattr(self, key) < 1:
                raise reject(f"memory.strategy.{key}", getattr(self, key), "must be 1 or more")

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what stage 1 has: weights and gradients in 16 bits, a share of the float32 copy and of the state.

        Gradients of float32 weights are made in 16 bits too, and copied once by buckets of `reduce_bucket_size`.
        """
        values, whole = model.trained_values, model.whole
        weights = whole.weights - max(whole.gradients - 2 * values, 0)
        buckets = 2 * min(2 * self.reduce_bucket_size, 2 * values)
        return Bytes(weights, 2 * values + buckets, (4 * values + whole.state) / processes)


@dataclass(kw_only=True, slots=True)
class OffloadConfig(ZeroConfig):
    """Shared fields of the stages that can keep state outside of the GPU.

    Nothing goes to a disk (ZeRO-Infinity): DeepSpeed 0.19 does not find the optimiser's state there when a run goes on,
    leaves it where it was under stage 2, and reads ahead more layers than it has buffers for.
    """

    offload_optimizer: bool = False
    """Keep the optimiser's state in the host's memory, where it also runs (arXiv 2101.06840)."""
    pin_memory: bool = False
    """Page-locked host memory for what is offloaded: faster copies, and nobody else can use it."""

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what stage 1 has, without copy and state where these are on the host."""
        found = ZeroConfig.held(self, model, processes)
        return found._replace(state=0) if self.offload_optimizer else found


def build_stage(
    stage: int,
    config: ZeroConfig,
    ranks: "Ranks",
    *,
    keeps: "Callable[[Weight], bool] | None" = None,
    **extra: Any,
) -> "Parallel":
    """Makes the strategy of a stage.

    Args:
        stage: 1, 2 or 3.
        config: Its settings.
        ranks: Of the run.
        keeps: Says which weights stage 3 leaves whole within a step; None: DeepSpeed's choice alone.
        extra: What else stands in DeepSpeed's `zero_optimization`.
    """
    settings = asdict(config)
    shared = ("overlap_comm", "contiguous_gradients", "reduce_bucket_size", "allgather_bucket_size")
    section = {"stage": stage} | {key: settings[key] for key in shared} | extra
    return build_json(settings["name"], {"zero_optimization": section}, ranks, keeps)


def offload(config: OffloadConfig, *, params: bool = False) -> dict[str, Any]:
    """Returns the offload sections of `zero_optimization`.

    Raises:
        UserError: A setting has no effect.
    """
    target: dict[str, Any] = {"device": "cpu", "pin_memory": config.pin_memory}
    names = [name for name, wanted in (("optimizer", config.offload_optimizer), ("param", params)) if wanted]
    if config.pin_memory and not names:
        raise reject("memory.strategy.pin_memory", "true", "has no effect: nothing is offloaded")
    return {f"offload_{name}": dict(target) for name in names}


def build_json(
    name: str, settings: dict[str, Any], ranks: "Ranks", keeps: "Callable[[Weight], bool] | None" = None
) -> "Parallel":
    """Makes Lightning's DeepSpeedStrategy.

    Args:
        name: Of the strategy's config.
        settings: DeepSpeed's, without what the run decides; completed here.
        ranks: Of the run.
        keeps: As for `build_stage`.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("deepspeed") is None:
        remedy = "needs DeepSpeed: pip install 'qwen3-vl-harness[deepspeed]', or use memory/strategy=fsdp2"
        raise reject("memory/strategy", name, remedy)
    from harness.memory.strategy import engine
    from harness.memory.strategy.parallel import Parallel

    complete = {
        "zero_allow_untested_optimizer": True,
        # torch's AdamW runs on the host as well, and is the one that the run asked for.
        "zero_force_ds_cpu_optimizer": False,
        # Only for DeepSpeed's own log of samples per second.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": ranks.max_grad_norm or 0.0,
        **settings,
    }
    section = settings.get("zero_optimization") or {}
    stage = section.get("stage", 0)
    if stage == 3:
        # DeepSpeed's own linear function keeps no view of a gathered weight until the backward pass. Compiled layers
        # keep none either, and with it torch 2.11 makes each of 36 layers a program of its own.
        complete["zero_optimization"] = {"memory_efficient_linear": not ranks.compiled} | section
    strategy = engine.make(name, complete, keeps)
    return Parallel(
        strategy,
        {"strategy": "deepspeed", "processes": ranks.world_size, "deepspeed": complete},
        sharded=stage == 3,
        root=engine.root if stage == 3 else lambda module, stepping: None,
        clip=lambda parameters, limit: None,
        divides_loss=True,
        norm=lambda: engine.norm(strategy),
        gradient=engine.gradient,
        gather=engine.gather,
    )
