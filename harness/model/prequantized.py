"""Checkpoints whose weights are quantised already: which load, with what package, and which tuners train on them.

AWQ (Lin et al., arXiv 2306.00978) and GPTQ (Frantar et al., arXiv 2210.17323) need calibration data, so models come
quantised; transformers loads them by gptqmodel, whose layers PEFT knows. What else `quantization_config` may name is
what a run can do itself to the original checkpoint, as `memory/quant` or memory=fp8_base, with every adapter.
"""

from importlib.util import find_spec
from typing import Any

from torch import nn

from harness.errors import UserError, reject

_PACKAGES = {"awq": ("gptqmodel",), "gptq": ("gptqmodel", "optimum")}
_TUNERS = {"awq": ("lora", "oft"), "gptq": ("lora", "adalora", "oft")}
"""What PEFT has a layer for."""
_INSTEAD = {
    "bitsandbytes": "memory/quant=bnb4 or bnb8",
    "hqq": "memory/quant=hqq",
    "quanto": "memory/quant=quanto",
    "torchao": "memory/quant=torchao",
    "eetq": "memory/quant=eetq",
    "fp8": "memory=fp8_base, or memory/quant=quanto memory.quant.weights=float8",
    "fbgemm_fp8": "memory=fp8_base, or memory/quant=quanto memory.quant.weights=float8",
}


def method_of(kind: Any) -> str | None:
    """Returns how a checkpoint is quantised, as its config says, or None."""
    found = getattr(kind, "quantization_config", None)
    if found is None:
        return None
    return str(found.get("quant_method") if isinstance(found, dict) else found.quant_method)


def check_loads(kind: Any, path: str) -> None:
    """Refuses a quantised checkpoint that can not be trained on here.

    Args:
        kind: The checkpoint's config.
        path: Where it is, for messages.

    Raises:
        UserError: It is of another kind than AWQ and GPTQ, or the package for it is not installed.
    """
    method = method_of(kind)
    if method is None:
        return
    if method not in _PACKAGES:
        instead = f"load the original with {_INSTEAD.get(method, 'memory/quant=bnb4')}"
        raise reject("model.path", path, f"is quantised by {method}, on which no adapter trains here; {instead}")
    for package in _PACKAGES[method]:
        if find_spec(package) is None:
            remedy = "pip install -c constraints.txt -e '.[gptq]'"
            raise UserError(f"model.path={path}: is quantised by {method}, and {package} is not installed; {remedy}")


def check_tuner(config: Any, model: nn.Module) -> None:
    """Refuses a tuner that has no layer for a quantised checkpoint.

    Args:
        config: The tuner's.
        model: As loaded.

    Raises:
        UserError: PEFT has no such layer, or the tuner needs the weights themselves.
    """
    method = method_of(model.config)
    if method is None or method not in _TUNERS:
        return
    if config.name not in _TUNERS[method]:
        remedy = f"can not train on a checkpoint quantised by {method}; use {', '.join(_TUNERS[method])}"
        raise reject("tuner", config.name, remedy)
    if getattr(config, "exports_model", False) or getattr(config, "needs_plain_base", None):
        raise reject(
            "tuner.init", config.init, f"needs the weights themselves, which {method} has rounded; use default"
        )
