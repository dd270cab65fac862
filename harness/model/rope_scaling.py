"""RoPE scaling: positions beyond those that a model was trained on, by slower rotations.

With s the factor, L the original length, t_i = theta^(-2i/d) the rotation of a pair of features a position:

- linear (position interpolation, Chen et al., arXiv 2306.15595): t_i / s.
- yarn (Peng et al., arXiv 2309.00071): t_i for pairs that turn more than beta_fast (32) times within L, t_i / s for
  those that turn less than beta_slow (1) times, a ramp between; attention logits times (0.1 ln s + 1)^2.
- dynamic (NTK-aware, the same paper's appendix): theta grows with the longest sample of the batch once it is over L.

transformers computes them, for each of mRoPE's three axes alike. Where this differs from it: dynamic keeps the
frequencies of the longest batch so far, so a loss would depend on the batches before; here they depend on the batch
alone (`forget_longer_batches`), packed or padded. And a dynamic model's `max_position_embeddings` stays at L, which
transformers' formula takes it for; linear and yarn get L s.
"""

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from harness.errors import reject

_KEY = "model.rope_scaling"


class RopeType(Enum):
    """Kinds of scaling."""

    linear = "linear"
    dynamic = "dynamic"
    yarn = "yarn"


_YARN = {
    "original_max_position_embeddings": int,
    "attention_factor": float,
    "beta_fast": float,
    "beta_slow": float,
    "mscale": float,
    "mscale_all_dim": float,
    "truncate": bool,
}
"""What yarn takes beside its factor, in transformers' names; the other kinds take nothing."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """A parsed `model.rope_scaling`."""

    kind: RopeType
    factor: float | None
    """None: from `max_model_len`, once the checkpoint's own length is known."""
    max_model_len: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def parse(value: Any, max_model_len: int | None) -> RopeScaling | None:
    """Returns what the two keys ask for.

    Args:
        value: A kind's name, a map with `type` and `factor`, the same as JSON, or None.
        max_model_len: For a name, the length to make room for.

    Raises:
        UserError: The kind is unknown, a key or its value is wrong, or one of the two keys lacks the other.
    """
    known = ", ".join(kind.name for kind in RopeType)
    if value is None:
        if max_model_len is not None:
            remedy = f"has no effect alone: give {_KEY} ({known}), or bound rows by data.max_length"
            raise reject("model.max_model_len", max_model_len, remedy)
        return None
    if isinstance(value, str) and value in RopeType.__members__:
        if max_model_len is None:
            raise reject(_KEY, value, "how far? give model.max_model_len, or a map with type and factor")
        return RopeScaling(RopeType[value], None, max_model_len)
    remedy = f"give {known}, or a map such as {{type: yarn, factor: 2.0}}"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise reject(_KEY, value, remedy) from error
    if not isinstance(value, dict):
        raise reject(_KEY, value, remedy)
    if max_model_len is not None:
        remedy = f"has no effect, for {_KEY} has a factor of its own; leave one of the two out"
        raise reject("model.max_model_len", max_model_len, remedy)
    return _of_map(value, remedy)


def _of_map(given: dict[str, Any], remedy: str) -> RopeScaling:
    names = [name for name in ("type", "rope_type") if name in given]
    if len(names) != 1 or str(given[names[0]]) not in RopeType.__members__:
        raise reject(_KEY, given, remedy)
    kind = RopeType[given[names[0]]]
    known = _YARN if kind is RopeType.yarn else {}
    options = {key: value for key, value in given.items() if key not in (*names, "factor")}
    for key in options:
        if key not in known:
            raise reject(_KEY, key, f"{kind.name} takes no such key; it takes {', '.join(['factor', *known])}")
    factor: Any = given.get("factor")
    if not _is_number(factor) or not 1 <= factor < math.inf:
        raise reject(f"{_KEY}.factor", factor, "give a number of 1 or more")
    return RopeScaling(kind, float(factor), None, {key: _checked(key, value) for key, value in options.items()})


def _checked(key: str, value: Any) -> Any:
    """Returns yarn's option in the type that transformers wants."""
    wanted = _YARN[key]
    if wanted is bool and not isinstance(value, bool):
        raise reject(f"{_KEY}.{key}", value, "must be true or false")
    if wanted is not bool and not (_is_number(value) and 0 < value < math.inf and wanted(value) == value):
        raise reject(f"{_KEY}.{key}", value, f"must be {'a whole number' if wanted is int else 'a number'} above 0")
    return wanted(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scale(text_config: Any, scaling: RopeScaling) -> int:
    """Writes the scaling into a text model's config, from which transformers makes its rotations.

    Args:
        text_config: Changed in place.
        scaling: What is asked for.

    Returns:
        The longest sample in tokens that there is room for.

    Raises:
        UserError: `max_model_len` is no more than the checkpoint takes already.
    """
    before = dict(text_config.rope_parameters)
    original = scaling.options.get("original_max_position_embeddings") or original_length(text_config)
    longest = scaling.max_model_len
    if longest is not None and longest <= original:
        remedy = f"the checkpoint takes {original:,} tokens already: give more, or leave {_KEY} out"
        raise reject("model.max_model_len", longest, remedy)
    # A whole factor, as ms-swift rounds it: one more token would give a model of its own otherwise.
    factor = scaling.factor or float(math.ceil((longest or 0) / original))
    kept = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
    rope = {key: before[key] for key in kept if key in before}
    rope |= {"rope_type": scaling.kind.name, "factor": factor, **scaling.options}
    if scaling.kind is RopeType.yarn:
        rope["original_max_position_embeddings"] = original
    text_config.rope_parameters = rope
    text_config.max_position_embeddings = original if scaling.kind is RopeType.dynamic else int(original * factor)
    return longest or int(original * factor)


def original_length(text_config: Any) -> int:
    """Returns the positions that a model was trained on before any scaling."""
    rope = text_config.rope_parameters
    if known := rope.get("original_max_position_embeddings"):
        return int(known)
    scaled = rope.get("factor", 1.0) if rope.get("rope_type") == RopeType.linear.name else 1.0
    return int(text_config.max_position_embeddings / scaled)


def forget_longer_batches(model: Any) -> None:
    """Lets a dynamic model take its frequencies from the batch at hand, in place; does nothing to other models."""
    rotation = model.model.language_model.rotary_emb
    if rotation.rope_type == RopeType.dynamic.name:
        rotation.register_forward_pre_hook(_forget)


def _forget(rotation: Any, args: Any) -> None:
    rotation.max_seq_len_cached = rotation.original_max_seq_len
    rotation.inv_freq = rotation.original_inv_freq
