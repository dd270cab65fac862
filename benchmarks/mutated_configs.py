"""Every key of every shipped config, misspelt, of a wrong type and out of range: the command line has to refuse it.

python benchmarks/mutated_configs.py --out mutations.json [--only tuner.rank] [--every 10]

Which values are wrong follows from a key's type (`WRONG`) and, of numbers, from what they stand for: no number of this
harness is below -1 by far, infinite or not a number; a share is no more than 1; a count is not 0. An integer where a
float is asked for, a number where a string is, and 0 or 1 for a truth value are right.

Hydra composes each option's config once and then applies each wrong override to a copy, as it does on a command line
behind the same composition, of which that is the last step; each 50th is composed from the start, for the same message.
"""

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from harness import compose, registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.errors import UserError

BASE = {
    ("model", "qwen3_vl"): ["model.path=harness:tiny"],
    ("data", "files"): ["data.train=train.jsonl"],
    ("data", "jsonl"): ["data.train=train.jsonl"],
    ("memory/strategy", "deepspeed"): ["memory.strategy.file=zero.json"],
    **{("optim", name): ["tuner=full"] for name in ("lisa", "apollo", "apollo_mini", "galore", "q_galore")},
}
"""What an option needs beside it."""
BESIDE = {f"tuner.{start}": (f"tuner.init={start}",) for start in ("eva", "corda", "loftq", "lora_ga")}
"""What keys need beside them to be looked at: a start's own settings that start."""
SHARES = (
    *("data.split_ratio", "freeze.ratio", "optim.layer_decay", "optim.schedule.min_lr_ratio"),
    *("optim.schedule.warmup_ratio", "optim.schedule.factor", "optim.schedule.warmup_lr_ratio"),
    *("optim.beta1", "optim.beta2", "optim.momentum", "optim.cos_threshold", "tuner.dropout", "tuner.beta1"),
    *("tuner.beta2", "tuner.group_ratio"),
)
"""Keys whose value is no more than 1."""
COUNTS = (
    *("data.image.max_tokens", "data.image.min_tokens", "data.image.max_pixels_decoded", "data.max_length"),
    *("data.video.fps", "data.video.min_frames", "data.video.max_frames", "data.video.max_tokens"),
    *("data.video.min_tokens", "data.video.time_limit_s", "data.generation.max_new_tokens", "data.prefetch"),
    *("data.generation.max_samples", "data.shuffle_buffer", "data.index_workers", "data.packing_length"),
    *("data.max_tokens_per_batch", "data.vit_cache.max_gib", "data.train_rows", "model.max_model_len"),
    *("trainer.batch_size", "trainer.accumulate", "trainer.devices", "trainer.nodes", "trainer.max_steps"),
    *("trainer.max_epochs", "trainer.val_batch_size", "trainer.log_every_steps", "trainer.keep_checkpoints"),
    *("trainer.save_every_steps", "trainer.val_every_steps", "trainer.ddp_timeout_s", "trainer.neftune_alpha"),
    *("memory.sequence_parallel", "memory.checkpointed_layers", "memory.budget_gib", "memory.quant.bits"),
    *("memory.quant.group_size", "memory.quant.blocksize", "memory.strategy.shard_size"),
    *("memory.strategy.bucket_cap_mb", "memory.strategy.hpz_partition_size", "optim.lr", "optim.vit_lr"),
    *("memory.strategy.allgather_bucket_size", "memory.strategy.reduce_bucket_size", "optim.aligner_lr"),
    *("optim.rank", "optim.update_proj_gap", "optim.step_interval", "optim.activated_layers", "optim.ns_steps"),
    *("optim.eps", "optim.scale", "optim.clip_threshold", "optim.proj_bits", "optim.proj_group_size"),
    *("optim.queue_size", "optim.schedule.cooldown", "optim.schedule.timescale", "logging.flush_seconds"),
    *("tuner.rank", "tuner.alpha", "tuner.mini_rank", "tuner.block_size", "tuner.length", "tuner.target_r"),
    *("tuner.init_r", "tuner.num_new_blocks", "tuner.n_frequency", "tuner.n_butterfly_factor", "tuner.eps"),
    *("tuner.delta_t", "tuner.lora_plus_ratio", "tuner.group_size", "tuner.num_groups", "tuner.scaling"),
    "tuner.d_initial",
    *(f"tuner.{node}.batch_size" for node in ("eva", "corda", "lora_ga")),
    *("tuner.eva.batches", "tuner.corda.batches", "tuner.eva.max_length", "tuner.corda.max_length"),
    *("tuner.lora_ga.iters", "tuner.lora_ga.max_length", "tuner.lora_ga.gamma", "tuner.loftq.bits"),
    *("tuner.loftq.iterations",),
)
"""Keys of which 0 means nothing."""
WRONG: dict[Any, tuple[str, ...]] = {
    bool: ("perhaps", "7", "[true]"),
    int: ("many", "1.5", "true", "[1]"),
    float: ("much", "true", "{a: 1}"),
    str: ("[a]", "{a: b}"),
    list: ("word", "{a: b}", "7"),
    dict: ("word", "7"),
    Any: ("7", "{a: [b]}"),
}
"""Values that are of another type."""


class Mutation(NamedTuple):
    """One wrong override."""

    kind: str
    """misspelt, mistyped or out of range."""
    key: str
    beside: tuple[str, ...]
    """Overrides that choose the option."""
    override: str


def mutations() -> Iterator[Mutation]:
    """Yields those of every key of every option of every group, and of the root's own."""
    yield from _of("seed", int, ("trainer=standard",))
    for group in registry.GROUPS:
        for option in registry.options(group):
            beside = (f"{group}={option}", *BASE.get((group, option), ()))
            name = getattr(_node(compose_config(beside), registry.key_of(group)), "name")  # noqa: B009 - a config's key
            for key, hint in _keys(registry.get(group, name).config, registry.key_of(group), group):
                yield from _of(key, hint, (*beside, *BESIDE.get(key.rpartition(".")[0], ())))


def _node(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _keys(kind: Any, prefix: str, group: str) -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys of a dataclass with their types; a nested group's are its own options'."""
    for field in dataclasses.fields(kind):
        key = f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from _keys(field.type, key, group)
        elif f"{group}/{field.name}" not in registry.GROUPS:
            yield key, field.type


def _of(key: str, hint: Any, beside: tuple[str, ...]) -> Iterator[Mutation]:
    wrong = f"{key[:-1]}{'y' if key[-1] == 'x' else 'x'}"
    yield Mutation("misspelt", wrong, beside, f"{wrong}=1")
    yield Mutation("misspelt", wrong, beside, f"+{wrong}=1")
    for value in wrong_types(hint):
        yield Mutation("mistyped", key, beside, f"{key}={value}")
    for value in out_of_range(key, hint):
        yield Mutation("out of range", key, beside, f"{key}={value}")


def bare(hint: Any) -> tuple[Any, bool]:
    """Returns a type without `| None`, and whether that was there."""
    members = get_args(hint)
    if type(None) in members:
        return next(member for member in members if member is not type(None)), True
    return hint, False


def wrong_types(hint: Any) -> tuple[str, ...]:
    """Returns values that are not of a type, as a command line has them."""
    kind, may_be_null = bare(hint)
    nothing = () if may_be_null or kind is Any else ("null",)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ("no_such_member", "[a]", *nothing)
    inner = get_args(kind)
    odd = {list: "[{a: b}]", dict: "{a: [b]}"}.get(get_origin(kind)) if inner and inner[-1] is not Any else None
    return (*WRONG[get_origin(kind) or kind], *([odd] if odd else []), *nothing)


def out_of_range(key: str, hint: Any) -> tuple[str, ...]:
    """Returns numbers that a key has no use for."""
    kind, _ = bare(hint)
    if kind not in (int, float):
        return ()
    values = ["-1000000000", *(("nan", "inf", "-inf") if kind is float else ())]
    values += ["2"] if key in SHARES else []
    values += ["0"] if key in COUNTS else []
    return tuple(values)


def refused(mutation: Mutation) -> dict[str, Any]:
    """Composes and checks a command line, and says what came of it."""
    item = {"kind": mutation.kind, "overrides": [*mutation.beside, mutation.override], "ok": False}
    try:
        to_run_config(compose_config(item["overrides"]))
    except UserError as error:
        item |= {"ok": mutation.key in str(error), "message": str(error)}
    except Exception as error:
        item["message"] = f"{type(error).__name__}: {error}"
    else:
        item["message"] = "accepted"
    return item


@contextmanager
def composed_once() -> Iterator[None]:
    """Within it, what stands before the last override is composed once."""
    whole, made = compose.compose, {}

    def quick(name: str, overrides: Sequence[str]) -> DictConfig:
        *beside, last = overrides
        if last.partition("=")[0] in registry.GROUPS:
            return whole(name, list(overrides))
        if tuple(beside) not in made:
            made[tuple(beside)] = whole(name, beside)
        cfg = copy.deepcopy(made[tuple(beside)])
        ConfigLoaderImpl._apply_overrides_to_config(compose.parse([last]), cfg)
        return cfg

    compose.compose = quick
    try:
        yield
    finally:
        compose.compose = whole


def known_numbers() -> set[str]:
    """Returns the keys that SHARES and COUNTS may name."""
    return {item.key for item in mutations() if item.kind == "out of range"}


def main() -> int:
    """Returns 0 where all are refused, with the key in the message, and nothing was loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="file for the results, JSON")
    parser.add_argument("--only", default="", help="part of the keys to try")
    parser.add_argument("--every", type=int, default=1, help="try each n-th alone")
    options = parser.parse_args()
    registry.load()
    chosen = [item for item in mutations() if options.only in item.key][:: options.every]
    with composed_once():
        found = [refused(item) for item in chosen]
    for mutation, item in list(zip(chosen, found, strict=True))[::50]:
        assert refused(mutation) == item, f"composed from the start: {refused(mutation)}, not {item}"
    for item in found:
        if not item["ok"]:
            print(f"NOT REFUSED: {' '.join(item['overrides'])}: {item['message']}", flush=True)
    loaded = [name for name in ("torch", "transformers", "harness.model.loading") if name in sys.modules]
    print(f"{sum(item['ok'] for item in found)} of {len(found)} refused with their key; loaded: {loaded or 'nothing'}")
    figures = {
        "loaded": loaded,
        "refused": sum(item["ok"] for item in found),
        "tried": len(found),
        "kinds": {
            kind: sum(item["kind"] == kind for item in found) for kind in ("misspelt", "mistyped", "out of range")
        },
        "keys": len({mutation.key for mutation in chosen if mutation.kind != "misspelt"}),
        "wrong": [item for item in found if not item["ok"]],
    }
    options.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return int(bool(loaded) or figures["refused"] < figures["tried"])


if __name__ == "__main__":
    sys.exit(main())
