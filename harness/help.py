"""`python -m harness --help`: groups and their options, and every key with type, value and meaning."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness import registry
from harness.compose import compose_config, type_text

_USAGE = """\
python -m harness [group=option ...] [key=value ...]

Fine-tunes a Qwen3-VL. Without arguments: the tiny model on handwritten digits, with LoRA.

Examples
  python -m harness tuner=dora optim.lr=2e-4
  python -m harness experiment=demo
  python -m harness model=qwen3_vl model.path=CHECKPOINT data=jsonl data.train=train.jsonl data.val=val.jsonl
  python -m harness -m tuner.rank=8,16,32 optim.lr=1e-4,2e-4 freeze=vit,vit_aligner
  python -m harness trainer.resume=RUN_FOLDER
  python -m harness tuner=dora --help       keys of that choice
  python -m harness --cfg job               the composed config

Flags
  -m                 every combination of comma-separated values, one process each, compared at the end
  --cfg job          show the config and stop       --hydra-help   Hydra's own flags
"""
_WIDTH = 118


def render_help(overrides: Sequence[str]) -> str:
    """Returns the help text for the config that the overrides choose; what they leave open shows the default."""
    cfg = compose_config(overrides)
    groups = [f"  {group:<17}{', '.join(registry.options(group))}" for group in (*registry.GROUPS, "experiment")]
    wrapped = [textwrap.fill(line, _WIDTH, subsequent_indent=" " * 19) for line in groups]
    sections = [_USAGE, "Groups and their options", *wrapped, "", "Keys: value (type) meaning"]
    return "\n".join([*sections, *_keys(cfg, "")])


def _keys(cfg: DictConfig, prefix: str) -> Iterator[str]:
    """Yields the lines of one config node, nested nodes after its own keys."""
    kind = OmegaConf.get_type(cfg)
    assert kind is not None
    documentation = field_docs(kind)
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    nested = [name for name in fields if isinstance(_value(cfg, name), DictConfig)]
    for name in fields:
        # The name of a group's implementation is chosen by `<group>=`, not by its key.
        if name not in nested and not (name == "name" and _is_group(prefix[:-1])):
            yield from _key(f"{prefix}{name}", _value(cfg, name), fields[name], documentation.get(name, ""))
    for name in nested:
        node = cfg[name]
        title = f" ({node.name})" if "name" in node and _is_group(f"{prefix}{name}") else ""
        yield f"\n {prefix}{name}{title}"
        yield from _keys(node, f"{prefix}{name}.")


def _is_group(key: str) -> bool:
    return key.replace(".", "/") in registry.GROUPS


def _key(key: str, value: Any, hint: Any, meaning: str) -> Iterator[str]:
    shown = OmegaConf.to_yaml(OmegaConf.create([value])).strip().removeprefix("- ")
    if isinstance(value, list):
        shown = f"[{', '.join(map(str, value))}]"
    yield f"  {key} = {shown}  ({type_text(hint)})"
    if meaning:
        yield textwrap.fill(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _value(cfg: DictConfig, name: str) -> Any:
    if OmegaConf.is_missing(cfg, name):
        return "???"
    value = cfg[name]
    # A dictionary of the user's own keys is a value as a list is; a dataclass is a node with keys of its own.
    plain = OmegaConf.is_list(value) or (OmegaConf.is_dict(value) and OmegaConf.get_type(value) is dict)
    return OmegaConf.to_container(value, enum_to_str=True) if plain else value


def field_docs(kind: type) -> dict[str, str]:
    """Returns the string literal under each field of a dataclass, base classes included, on one line each."""
    documentation: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, literal in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(literal, ast.Expr):
                text = ast.literal_eval(literal.value)
                documentation[field.target.id] = " ".join(text.split())  # type: ignore[union-attr]
    return documentation
