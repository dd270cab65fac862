"""Settings of the starts that have any: `tuner.eva.*`, `tuner.corda.*`, `tuner.loftq.*`, `tuner.lora_ga.*`."""

import math
from dataclasses import dataclass
from enum import Enum

from harness.errors import reject


@dataclass(kw_only=True, slots=True)
class CalibrationConfig:
    """Which training samples a start looks at; fewer where there are fewer. Default: the 256 samples of CorDA."""

    batches: int = 64
    """Number of batches that the base model sees, without gradients."""
    batch_size: int = 4
    """Samples of each."""
    max_length: int | None = 2048
    """Longer samples are passed over; null takes all. Unit: tokens."""


@dataclass(kw_only=True, slots=True)
class EvaConfig(CalibrationConfig):
    """EVA's settings."""

    rho: float = 2.0
    """Most that a layer's rank can become, as a multiple of its own, 1 or more; 1 leaves the ranks as they are."""

    def __post_init__(self) -> None:
        _at_least_one("eva", self, "batches", "batch_size", "max_length", "rho")


class CordaMethod(Enum):
    """Which part of the weight trains."""

    ipm = "ipm"
    kpm = "kpm"


@dataclass(kw_only=True, slots=True)
class CordaConfig(CalibrationConfig):
    """CorDA's settings."""

    method: CordaMethod = CordaMethod.ipm
    """ipm trains what matters most on the data, to learn its task; kpm what matters least, to keep what it knows."""

    def __post_init__(self) -> None:
        _at_least_one("corda", self, "batches", "batch_size", "max_length")


@dataclass(kw_only=True, slots=True)
class LoftqConfig:
    """LoftQ's settings."""

    bits: int = 4
    """4 (NF4 in blocks of 64, as bitsandbytes) or 8 (rows of int8)."""
    iterations: int = 1
    """Alternations of quantisation and SVD; the paper's 5. With 1 the base is the checkpoint's plain quantisation."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise reject("tuner.loftq.bits", self.bits, "known: 4, 8")
        _at_least_one("loftq", self, "iterations")


class Direction(Enum):
    """Which singular vectors of the gradient A and B get; r is the rank."""

    ArBr = "ArBr"
    A2rBr = "A2rBr"
    ArB2r = "ArB2r"
    random = "random"


class Scale(Enum):
    """How large A and B start."""

    gd = "gd"
    unit = "unit"
    stable = "stable"
    weightS = "weightS"


@dataclass(kw_only=True, slots=True)
class LoraGaConfig:
    """LoRA-GA's settings; defaults of ms-swift 4.6, which are the paper's."""

    batch_size: int = 2
    """Samples of a batch of gradients."""
    iters: int = 2
    """Number of batches over which gradients are averaged."""
    max_length: int = 1024
    """Longer samples are passed over. Unit: tokens."""
    direction: Direction = Direction.ArB2r
    """A and B get: every second vector (ArBr), the first r in A (ArB2r, the paper's) or B (A2rBr), or random ones."""
    scale: Scale = Scale.stable
    """gd: unit vectors / LoRA's scale; unit: as they are; stable: x outputs^(1/4) / sqrt(gamma); weightS: as W's."""
    gamma: float = 16
    """Of scale=stable: more is a smaller start."""

    def __post_init__(self) -> None:
        _at_least_one("lora_ga", self, "batch_size", "iters", "max_length")
        if not 0 < self.gamma < math.inf:
            raise reject("tuner.lora_ga.gamma", self.gamma, "must be more than 0")
        if self.scale is not Scale.stable and self.gamma != 16:
            raise reject("tuner.lora_ga.gamma", self.gamma, f"has no effect with scale={self.scale.name}; leave it out")


def _at_least_one(node: str, config: object, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and not 1 <= value < math.inf:
            raise reject(f"tuner.{node}.{key}", value, "must be 1 or more")
