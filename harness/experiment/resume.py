"""`trainer.resume=<run folder>`: the same run goes on, in the same folder, with the overrides it was started with."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from harness import config
from harness.compose import compose_config
from harness.errors import UserError

KEY = "trainer.resume"
AUTO = "auto"
MAY_CHANGE = ("trainer.max_steps", "trainer.max_epochs", "trainer.keep_checkpoints", "trainer.load_best")
"""Keys of a run's identity that a resumed run may have otherwise: they change where it ends, not how it trains."""


def apply(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides to compose: those of the resumed run first, then the new ones, in that run's folder.

    Raises:
        UserError: The folder holds no run, or a key that decides how it trains has another value now.
    """
    folder = next((Path(item.partition("=")[2]) for item in overrides if item.startswith(f"{KEY}=")), None)
    if folder is None or str(folder) in (AUTO, "null"):
        return list(overrides)
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise UserError(f"{KEY}={folder}: no run folder; give one that holds .hydra/ and checkpoints/")
    before = [str(item) for item in OmegaConf.load(stored)]
    replaced = {_key(item) for item in overrides}
    merged = [item for item in before if _key(item) not in replaced] + list(overrides)
    _refuse_drift(folder, merged)
    return [*(item for item in merged if _key(item) != "hydra.run.dir"), f"hydra.run.dir={_quoted(str(folder))}"]


def _refuse_drift(folder: Path, overrides: Sequence[str]) -> None:
    """Compares what decides the training now with what the run was started with."""
    started = config.identity(config.load(folder / "config.yaml"))
    now = config.identity(config.to_run_config(compose_config(overrides)))
    changed = [
        f"{key}: {started.get(key)} -> {now.get(key)}"
        for key in sorted(started.keys() | now.keys())
        if started.get(key) != now.get(key) and key not in MAY_CHANGE
    ]
    if changed:
        raise UserError(f"{KEY}={folder}: the config differs from the run's own: {'; '.join(changed)}")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
