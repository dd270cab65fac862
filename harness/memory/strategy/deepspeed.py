"""DeepSpeed by a JSON file of its own, for what the typed strategies have no key for.

Values "auto", which files written for transformers have, are left out: what they stand for is the run's to say, or
DeepSpeed's default.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from harness.errors import reject
from harness.memory.strategy.config import Bytes, Model, StrategyConfig
from harness.memory.strategy.zero import OffloadConfig, build_json
from harness.registry import register

if TYPE_CHECKING:
    from harness.memory.strategy.parallel import Parallel, Ranks

_OWNED = {
    "optimizer": "optim=<name>",
    "scheduler": "optim.schedule.name",
    "gradient_clipping": "optim.max_grad_norm",
    "gradient_accumulation_steps": "trainer.accumulate",
    "train_batch_size": "trainer.batch_size",
    "train_micro_batch_size_per_gpu": "trainer.batch_size",
    "fp16": "memory.precision",
    "bf16": "memory.precision",
}
"""What the run decides, and by which key."""
_KEY = "memory.strategy.file"


@dataclass(kw_only=True, slots=True)
class DeepspeedConfig(StrategyConfig):
    """A file in DeepSpeed's format."""

    # What is in the file is not known here, so rules hold for the strictest that can be.
    sharded: ClassVar[bool] = True
    flattens: ClassVar[bool] = True
    scales_fp16: ClassVar[bool] = False
    reshards: ClassVar[bool] = False
    saves_parts: ClassVar[bool] = True

    name: str = "deepspeed"
    file: str = MISSING
    """JSON file. Batch size, accumulation, clipping, precision, optimiser and schedule are the run's own keys."""

    def held(self, model: Model, processes: int) -> Bytes:
        """Returns what the file's stage has with its other settings left at their defaults.

        Raises:
            UserError: The file can not be read.
        """
        from harness.memory.strategy.zero2 import Zero2Config
        from harness.memory.strategy.zero3 import Zero3Config

        settings = read(Path(self.file))
        on_host = {key for key, device in _offloaded(settings) if device not in (None, "none")}
        stage = (settings.get("zero_optimization") or {}).get("stage", 0)
        if stage == 3:
            return Zero3Config(
                keep_trained=False,
                offload_optimizer="offload_optimizer" in on_host,
                offload_param="offload_param" in on_host,
            ).held(model, processes)
        kind = Zero2Config if stage == 2 else OffloadConfig
        return kind(offload_optimizer="offload_optimizer" in on_host).held(model, processes if stage else 1)


@register("memory/strategy", DeepspeedConfig)
def build(config: DeepspeedConfig, ranks: "Ranks") -> "Parallel":
    """Makes DeepSpeed's strategy.

    Args:
        config: The file.
        ranks: Of the run.

    Raises:
        UserError: The file can not be read, says what the run's own keys say, or names a disk.
    """
    return build_json(config.name, read(Path(config.file)), ranks)


def read(path: Path) -> dict[str, Any]:
    """Reads a DeepSpeed config.

    Raises:
        UserError: As for `build`.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise reject(_KEY, path, f"can not be read ({error})") from error
    if not isinstance(settings, dict):
        raise reject(_KEY, path, "must hold one JSON object")
    said = {key: without_auto(value) for key, value in settings.items() if value != "auto"}
    for key, ours in _OWNED.items():
        value = said.pop(key, None)
        switched = value in (None, {}, {"enabled": False}) or (key in ("fp16", "bf16") and "enabled" not in value)
        if not switched:
            raise reject(_KEY, path, f"sets {key}={json.dumps(value)}: take it out and set {ours}")
    for key, device in _offloaded(said):
        if device == "nvme":
            remedy = f"sets {key} to a disk, from which DeepSpeed does not take a run up as it was; use cpu"
            raise reject(_KEY, path, remedy)
    return said


def _offloaded(settings: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Returns DeepSpeed's sections of what is offloaded, and where to."""
    section = settings.get("zero_optimization") or {}
    return [(key, (section.get(key) or {}).get("device")) for key in ("offload_optimizer", "offload_param")]


def without_auto(value: Any) -> Any:
    """Returns a value without what is "auto" in it."""
    if not isinstance(value, dict):
        return value
    return {key: without_auto(item) for key, item in value.items() if item != "auto"}
