"""`trainer.resume=<run folder>`: the same run goes on, in the same folder, with the overrides it was started with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from harness import config
from harness.compose import compose_config, parse
from harness.config import RunConfig
from harness.errors import UserError
from harness.yaml_file import read_yaml

KEY, FORCE, RUN_DIR = "trainer.resume", "trainer.force_resume", "hydra.run.dir"
AUTO = "auto"
MAY_CHANGE = (
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.keep_checkpoints",
    "trainer.load_best",
    "trainer.on_nonfinite",
    "trainer.max_nonfinite",
)
"""Keys of a run's identity that a resumed run may have otherwise. A longer run stretches the schedule with it."""


def apply(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides to compose: those of the resumed run first, then the new ones, in that run's folder.

    Raises:
        UserError: The folder holds no run, a run that is not asked to go on, or one that trains otherwise.
    """
    given = {_key(item): _value(item) for item in overrides}
    resume, run_dir = given.get(KEY, "null"), given.get(RUN_DIR)
    if resume == "null":
        _refuse_used(run_dir)
        return list(overrides)
    folder = Path(run_dir or "" if resume == AUTO else resume)
    stored = folder / ".hydra" / "overrides.yaml"
    if resume == AUTO and (run_dir is None or not stored.is_file()):
        return list(overrides)
    if not stored.is_file():
        raise UserError(f"{KEY}={folder}: no run folder; give one that holds .hydra/ and checkpoints/")
    before = [item for item in _stored(stored) if _key(item) not in (*given, FORCE)]
    after = [item for item in overrides if _key(item) not in (KEY, RUN_DIR)]
    merged = [*before, *after, f"{KEY}={_quoted(resume)}"]
    _refuse_drift(folder, merged)
    return [*merged, f"{RUN_DIR}={_quoted(str(folder))}"]


def _stored(path: Path) -> list[str]:
    """Reads the overrides that a run was started with.

    Raises:
        UserError: The file is damaged, or sets something of Hydra's own, which no run writes there: with it, a
            stranger's folder could have Hydra call what it likes.
    """
    texts = OmegaConf.to_container(read_yaml(path))
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise UserError(f"{path}: holds no list of overrides")
    try:
        parsed = parse(texts)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for item in parsed:
        names = item.key_or_group.replace("/", "."), item.package or ""
        if any(name.partition(".")[0] == "hydra" for name in names):
            raise UserError(f"{path}: {item.input_line}: a setting of Hydra's own is no part of a run; remove the line")
    return texts


def _refuse_used(run_dir: str | None) -> None:
    """Looks before Hydra does: it would write its files over those of the run that is there."""
    if run_dir is not None and (Path(run_dir) / "status.json").is_file():
        raise UserError(f"{RUN_DIR}={run_dir} already holds a run: go on with {KEY}={run_dir}, or choose another")


def _refuse_drift(folder: Path, overrides: Sequence[str]) -> None:
    """Compares what decides the training now with what the run was started with."""
    before = config.load(folder / "config.yaml")
    try:
        after = config.to_run_config(compose_config(overrides))
    except UserError as error:
        raise UserError(f"{KEY}={folder}: with the overrides of that run: {error}") from error
    started, now = config.identity(before), config.identity(after)
    free = _free_to_change(folder, before, after)
    changed = [
        f"{key}: {started.get(key)} -> {now.get(key)}"
        for key in sorted(started.keys() | now.keys())
        if started.get(key) != now.get(key) and key not in free
    ]
    if not changed:
        return
    differs = f"{KEY}={folder}: the config differs from the run's own: {'; '.join(changed)}"
    if not after.trainer.force_resume:
        raise UserError(differs)
    print(f"warning: {FORCE}: {differs}", file=sys.stderr)


def _free_to_change(folder: Path, before: RunConfig, after: RunConfig) -> tuple[str, ...]:
    """Returns the keys that may be otherwise; where processes are more or fewer, also how a step is dealt to them.

    Raises:
        UserError: The steps would be others with that number of processes, or a checkpoint is of no use to them.
    """
    old, new = before.trainer, after.trainer
    if old.devices == new.devices:
        return MAY_CHANGE
    # Processes that share micro-batches count once.
    readers = before.data_ranks, after.data_ranks
    rows, now = (item.batch_size * item.accumulate * ranks for item, ranks in zip((old, new), readers, strict=True))
    alike = readers[0] == readers[1] and old.batch_size == new.batch_size
    strategy = after.memory.strategy
    reason = None
    if not strategy.reshards:
        reason = f"checkpoints of memory/strategy={strategy.name} hold a part for each process: give as many as before"
    elif rows != now:
        reason = f"a step would take {now} rows and not {rows}: set trainer.batch_size or trainer.accumulate to match"
    elif not alike and getattr(after.data, "streaming", False):
        reason = "streams are dealt out by the number of processes: give as many"
    if reason is not None:
        raise UserError(f"{KEY}={folder}: trainer.devices: {old.devices} -> {new.devices}: {reason}")
    dealt = ("trainer.devices", "trainer.batch_size", "trainer.accumulate", "memory.sequence_parallel")
    return (*MAY_CHANGE, *dealt)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _value(override: str) -> str:
    """Returns the text behind the key, without quotes that only Hydra needs."""
    text = override.partition("=")[2]
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return text
    return str(OverridesParser.create().parse_override(override).value())


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()
