"""Adapters that PEFT does not know: how they train, and a folder format of our own.

`adapter/adapter_model.safetensors` holds every trained weight under its name in the model;
`adapter/adapter_config.json` holds the tuner's config and where it was put. `PeftModel.from_pretrained` fails on it
with what to call instead:

    model = Qwen3VLForConditionalGeneration.from_pretrained(BASE)
    harness.tuner.own_format.attach(model, RUN_FOLDER / "adapter")
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import UserError
from harness.freeze.policy import Policy
from harness.model.loading import Loaded
from harness.tuner import bottleneck, intervention
from harness.tuner.adapter import AdapterConfig
from harness.tuner.beside import modules_beside
from harness.tuner.inserted import InsertedConfig
from harness.tuner.reft import ReftConfig
from harness.tuner.tuned import Tuned

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TYPE = "harness, no method of PEFT: load it with harness.tuner.own_format.attach(model, folder)"
"""Stands under `peft_type`, where PEFT reads it and names it in its error."""
_METHODS: dict[str, tuple[type, Callable[..., None]]] = {
    "adapter": (AdapterConfig, bottleneck.insert),
    "reft": (ReftConfig, intervention.insert),
}


def train(
    loaded: Loaded,
    policy: Policy,
    config: InsertedConfig,
    insert: Callable[..., None],
    modules: list[str],
    default_lr: float,
) -> Tuned:
    """Inserts the method's modules and marks them, and what trains in full beside them.

    Args:
        loaded: The frozen base model, changed in place.
        policy: What trains in full.
        config: The tuner's config.
        insert: Puts the method's modules into the model, with `(model, config, modules)`.
        modules: Where they go.
        default_lr: Learning rate where none is set.

    Raises:
        UserError: A module to save matches nothing, or only what is frozen.
    """
    model = loaded.model
    named = modules_beside(model, config.modules_to_save, policy)
    base = dict(model.named_parameters())
    whole = {id(parameter) for name in named for parameter in model.get_submodule(name).parameters()}
    insert(model, config, modules)
    adapter = frozenset(name for name, _ in model.named_parameters() if name not in base)
    beside = frozenset(name for name, parameter in base.items() if name in policy.free and id(parameter) in whole)
    for name, parameter in base.items():
        if name in beside:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(getattr(torch, config.dtype.name))

    def export(folder: Path) -> Path:
        weights = {name: p.detach() for name, p in model.named_parameters() if name in adapter | beside}
        save(folder / "adapter", config, modules, weights, loaded.path)
        return folder / "adapter"

    return Tuned(model, model, export, default_lr, adapter)


def save(folder: Path, config: InsertedConfig, modules: list[str], weights: dict[str, Tensor], base: str) -> None:
    """Writes an adapter folder.

    Args:
        folder: Made where it is missing.
        config: The tuner's config.
        modules: Where its modules were put.
        weights: All trained weights, by their name in the model.
        base: Path or hub id of the base model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tuner: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    described = {"peft_type": _TYPE, "base_model_name_or_path": base, "tuner": tuner, "modules": modules}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    plain = {name: value.cpu().contiguous() for name, value in weights.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def is_own(folder: Path) -> bool:
    """Returns whether a folder holds an adapter in this format."""
    return (folder / CONFIG).is_file() and _described(folder).get("peft_type") == _TYPE


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG}: damaged ({error})") from error
    if not isinstance(described, dict):
        raise UserError(f"{folder / CONFIG}: damaged (no JSON object)")
    return described


def _method(folder: Path, tuner: Any) -> tuple[Any, Callable[..., None]]:
    """Returns the config of an adapter's method, checked against its schema, and what inserts it."""
    name = tuner.get("name") if isinstance(tuner, dict) else None
    if not isinstance(name, str) or name not in _METHODS:
        raise UserError(f"{folder / CONFIG}: tuner.name={name}: known: {', '.join(_METHODS)}")
    kind, insert = _METHODS[name]
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), tuner)), insert
    except OmegaConfBaseException as error:
        raise UserError(f"{folder / CONFIG}: {error.full_key} does not fit this version of the harness") from error
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error


def attach(model: PreTrainedModel, folder: Path | str) -> None:
    """Puts a trained adapter into a plain Qwen3-VL, in place and frozen; nothing but its result changes.

    Args:
        model: The base model that the adapter was trained on, as transformers loads it.
        folder: What a run exported.

    Raises:
        UserError: The folder holds no such adapter, a damaged one, or it was trained on another model.
    """
    folder = Path(folder)
    if not is_own(folder):
        raise UserError(f"{folder}: no adapter in the harness's own format; PeftModel.from_pretrained loads PEFT's")
    described = _described(folder)
    config, insert = _method(folder, described.get("tuner"))
    modules = described.get("modules")
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise UserError(f"{folder / CONFIG}: modules={modules}: not a list of names")
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: damaged ({error})") from error
    known, before = {name for name, _ in model.named_modules()}, {name for name, _ in model.named_parameters()}
    of = f"it is an adapter of {described.get('base_model_name_or_path')}"
    if absent := [name for name in modules if name not in known]:
        raise UserError(f"{folder}: the model has no {absent[0]}; {of}")
    insert(model, config, modules)
    parameters = dict(model.named_parameters())
    if lacking := sorted(parameters.keys() - before - weights.keys()):
        raise UserError(f"{folder / WEIGHTS}: lacks {lacking[0]}")
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise UserError(f"{folder}: {name} does not fit the model; {of}")
        parameters[name].data.copy_(value)
        parameters[name].requires_grad_(False)
