"""What Hydra calls: a single run becomes a process on its frozen config; the trials of a multirun are compared.

A trial inside the multirun's process would inherit its ranks, its random state and its leftovers: with two devices
Lightning would even train it on one process without a word. `harness.sweep` starts each as a process of its own.
"""

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from harness import STARTED, config
from harness.errors import EXIT_CRASH, EXIT_USER, UserError, ends_on_mistake
from harness.experiment.failure import clear
from harness.experiment.folder import RunFolder
from harness.experiment.meeting import Meeting
from harness.trainer.standard import badness

if TYPE_CHECKING:
    from harness.sweep.study import Study

_TRIAL = (sys.executable, "-m", "harness.experiment.trial")

OmegaConf.register_new_resolver(
    "slug", lambda text: re.sub(r"[^\w.+-]+", "_", text.replace("=", "-"))[:100].strip("-_") or "default", replace=True
)


@dataclass(slots=True)
class Task:
    """The task function of Hydra's run and multirun, and what passes between the command line and Hydra's plugins."""

    meeting: Meeting | None = None
    """With the other processes that were started for a single run."""
    command: list[str] = field(default_factory=list)
    """Behind `python -m harness`."""
    study: "Study | None" = None
    """That a multirun was asked for by."""
    checked: dict[tuple[str, ...], config.RunConfig] = field(default_factory=dict)
    """Trials of a grid by their overrides."""
    trials: list[Path] = field(default_factory=list)
    """Folders of the multirun's trials so far, also of those that were over before."""
    codes: list[int] = field(default_factory=list)
    """Exit codes of those that ended."""
    ended_by: int | None = None
    """Signal that ended the multirun."""
    begun: bool = False
    """Whether Hydra has made the run's folder, or handed the trials over."""

    def __call__(self, cfg: DictConfig) -> None:
        """Freezes a single run's config in its folder and becomes it: signals and the exit code are the run's own."""
        self.begun = True
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        with ends_on_mistake():
            if hydra.mode is RunMode.MULTIRUN:
                raise UserError("hydra/launcher=basic: trains trials in one process; use serial or pool")
            config.save(cfg, folder / "config.yaml")
            become_trial(folder, self.meeting)

    def finish(self) -> int:
        """Prints the comparison after a multirun; returns 0 if every trial completed, 2 if all that failed did by 2."""
        if not self.trials:
            return EXIT_USER if self.codes else 0
        summaries = {folder: read_summary(folder) for folder in self.trials}
        print(comparison(summaries))
        print(f"run: {self.trials[0].parent}", flush=True)
        failed = {code for code in self.codes if code != 0}
        if not failed:
            return 0
        return EXIT_USER if failed == {EXIT_USER} else EXIT_CRASH


def become_trial(folder: Path, meeting: Meeting | None) -> NoReturn:
    """Replaces this process by the run in a folder, once all that were started for it know the folder.

    Raises:
        UserError: As for `Meeting.announce`.
    """
    if meeting is not None and meeting.number == 0:
        clear(RunFolder(folder))
        meeting.announce(folder, config.config_hash(config.load(folder / "config.yaml")))
    sys.stdout.flush()
    # To the user, the run began with this process.
    os.execv(sys.executable, [*_TRIAL, str(folder), str(STARTED)])


def swept(overrides: Sequence[str]) -> list[str]:
    """Returns Hydra overrides that name trials by the keys that differ among them, and by no others."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    constant = sorted({item.key_or_group for item in parsed if not item.is_sweep_override()})
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(constant)}]"] if constant else []


def read_summary(folder: Path) -> dict[str, Any]:
    """Returns a run's summary, or a failed one where the process ended without writing any."""
    return RunFolder(folder).read_summary() or {"status": "failed"}


def comparison(summaries: dict[Path, dict[str, Any]]) -> str:
    """Renders the trials of a multirun, best first by the monitored metric, failed ones last."""
    from harness.logging.table import render

    metric = next((s["best"]["metric"] for s in summaries.values() if s.get("best")), "val/loss")

    def order(item: tuple[Path, dict[str, Any]]) -> float:
        value = monitored(item[1], metric)
        return badness(metric, value) if value is not None and math.isfinite(value) else math.inf

    rows = []
    for rank, (folder, summary) in enumerate(sorted(summaries.items(), key=order), start=1):
        val, best = summary.get("val") or {}, summary.get("best") or {}
        figures = [_text(val.get("val/loss")), _text(val.get("val/exact_match")), _text(best.get("value"))]
        speed = _text(summary.get("tokens_per_s"), "{:,.0f}")
        rows.append([str(rank), folder.name, summary["status"], *figures, speed])
    columns = ["", "trial", "status", "val/loss", "val/exact_match", f"best {metric}", "tokens/s"]
    return render(f"trials, best first by the last {metric}", columns, rows)


def monitored(summary: dict[str, Any], metric: str) -> float | None:
    """Returns the last value of a metric, if it was measured."""
    return (summary.get("val") or {}).get(metric)


def _text(value: float | None, form: str = "{:.4f}") -> str:
    return "-" if value is None else form.format(value)
