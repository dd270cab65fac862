"""Versions of the packages that matter, and how to get those that are missing. None of them is imported."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from harness.logging.table import show as show_table

DISTRIBUTION = "qwen3-vl-harness"
"""Name under which this package is installed."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that the harness uses."""

    name: str
    purpose: str
    extra: str | None = None
    """Extra of pyproject.toml that installs it."""
    command: str | None = None
    """How to install it where no extra does; None for what the harness always needs."""

    @property
    def remedy(self) -> str:
        """How to install it."""
        if self.extra is not None:
            return f"pip install '{DISTRIBUTION}[{self.extra}]'"
        return self.command or f"pip install {DISTRIBUTION}"

    @property
    def required(self) -> bool:
        """Whether nothing trains without it."""
        return self.extra is None and self.command is None


PACKAGES = (
    Package("torch", "training"),
    Package("transformers", "the model and its processors"),
    Package("peft", "adapters"),
    Package("lightning", "the training loop"),
    Package("datasets", "data sets from the hub and in folders"),
    Package("flash-attn", "model.attention=flash_attention_2", extra="gpu"),
    Package("flash-attn-3", "model.attention=flash_attention_3", command="build flash-attention's hopper folder"),
    Package("flash-attn-4", "model.attention=flash_attention_4", extra="hopper"),
    Package("deepspeed", "ZeRO", extra="deepspeed"),
    Package("bitsandbytes", "8-bit optimisers, memory/quant=bnb4 and bnb8", extra="bitsandbytes"),
    Package("optimum-quanto", "memory/quant=quanto", extra="quant"),
    Package("torchao", "memory/quant=torchao", extra="quant"),
    Package("hqq", "memory/quant=hqq", extra="hqq"),
    Package("kernels", "memory/quant=eetq", extra="eetq"),
    Package("gptqmodel", "AWQ and GPTQ checkpoints", extra="gptq"),
    Package("wandb", "logging=wandb", extra="wandb"),
    Package("tensorboard", "logging=tensorboard", extra="tensorboard"),
    Package("swanlab", "logging=swanlab", extra="swanlab"),
    Package("ray", "hydra/launcher=ray", extra="ray"),
    Package("av", "videos", extra="video"),
    Package("optuna", "hydra/sweeper=optuna", extra="optuna"),
)


def measure() -> list[dict[str, Any]]:
    """Returns name, version (None where it is missing), purpose and remedy of each package."""
    return [
        {
            "name": package.name,
            "version": version(package.name),
            "purpose": package.purpose,
            "required": package.required,
            "remedy": package.remedy,
        }
        for package in PACKAGES
    ]


def version(name: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def show(packages: list[dict[str, Any]]) -> None:
    """Prints the table."""
    rows = [
        (item["name"], item["version"] or "missing", item["purpose"], "" if item["version"] else item["remedy"])
        for item in packages
    ]
    show_table("packages", ("package", "version", "for", "to install"), rows)


def problems(packages: list[dict[str, Any]]) -> list[str]:
    """Returns a message for each package without which nothing trains."""
    missing = [item for item in packages if item["required"] and item["version"] is None]
    return [f"the package {item['name']} is not installed: {item['remedy']}" for item in missing]
