"""Checks the options of a method of PEFT against its config class, and says which modules methods go into."""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from harness.errors import UserError, reject
from harness.tuner.peft_method import DEFAULTS, RESERVED, WITHOUT_EFFECT, Method
from harness.tuner.target import Kind

NORM = Kind("norm", lambda name, module: type(module).__name__.endswith(("RMSNorm", "LayerNorm")))
"""transformers' RMSNorm is a class of its own for each model."""
EMBEDDING = Kind("token embedding", lambda name, module: name.endswith("embed_tokens"))
"""And not the vision tower's positions."""


def config_class(method: Method) -> type[PeftConfig]:
    """Returns PEFT's config class of a method."""
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method.name.upper()]]


def checked_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's options over our defaults.

    Raises:
        UserError: The method has no such option, or its value is of another type.
    """
    kind = config_class(method)
    hints = typing.get_type_hints(kind)
    known = sorted({item.name for item in fields(kind)} - RESERVED.keys() - WITHOUT_EFFECT.get(method, {}).keys())
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            remedy = f"{method.name} has no such option.{meant} Known: {', '.join(known)}"
            raise reject(f"tuner.options.{key}", value, remedy)
        if not _fits(value, hints[key]):
            raise reject(f"tuner.options.{key}", value, f"expected {_spell(hints[key])}")
    return DEFAULTS.get(method, {}) | dict(options)


@contextmanager
def explained(method: Method, options: Mapping[str, Any]) -> Iterator[None]:
    """Turns PEFT's refusal of an option into a message about it."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise reject("tuner.options", dict(options), f"{method.name} of PEFT can not use it: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value out of YAML is of an annotated type; a whole number is a float too."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in members)
    if origin is Literal:
        return any(value == member and type(value) is type(member) for member in members)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, members[0]) for item in value)
    if (origin or hint) is dict:
        inside = members or (Any, Any)
        return isinstance(value, dict) and all(_fits(k, inside[0]) and _fits(v, inside[1]) for k, v in value.items())
    if hint in (int, float):
        return isinstance(value, hint if hint is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        shown = [_spell(member) for member in members if not (isinstance(member, type) and issubclass(member, Enum))]
        return " or ".join(shown)
    if origin is Literal:
        return " or ".join(str(member) for member in members)
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_spell(member) for member in members)}"
    return {"bool": "true or false", "NoneType": "null", "str": "text"}.get(hint.__name__, hint.__name__)
