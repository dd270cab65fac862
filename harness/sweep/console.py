"""What a sweep says on the console: its size and cost before it starts, and a line for each event."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.experiment.launch import monitored
from harness.sweep.pool import Ended
from harness.sweep.trial import Trial


@dataclass(kw_only=True, slots=True)
class Progress:
    """Counts what is over."""

    total: int = 0
    done: int = 0
    shows_ends: bool = True
    """A trial that has the console shows its end itself."""

    def starts(self, trial: Trial, *, goes_on: bool) -> None:
        """Says which trial starts."""
        how = " (goes on)" if goes_on else ""
        print(f"trial {trial.number + 1}: {trial.run.path.name}{how}", flush=True)

    def ends(self, ended: Ended) -> None:
        """Says how a trial ended, and how many are over."""
        self.done += 1
        if not self.shows_ends:
            return
        run, metric = ended.trial.run, ended.trial.config.trainer.monitor
        value = monitored(run.read_summary(), metric)
        how = f"{ended.trial.state} in {ended.seconds:.0f} s"
        if value is not None:
            how += f", {metric} {value:.4f}"
        if ended.code != 0:
            how += f": {run.read_status().get('exit_reason') or f'exit code {ended.code}'} ({run.path / 'console.log'})"
        print(f"[{self.done}/{self.total}] {run.path.name}: {how}", flush=True)


def resolution(trials: Sequence[Trial]) -> str | None:
    """Returns what differences a grid can tell, from its cells and the seeds of each; None where it has one cell."""
    from harness.report.forecast import forecast

    seeds: dict[tuple[str, ...], set[int]] = {}
    for trial in trials:
        cell = tuple(item for item in trial.overrides if not item.startswith("seed="))
        seeds.setdefault(cell, set()).add(trial.config.seed)
    return forecast(len(seeds), min(map(len, seeds.values()))) if len(seeds) > 1 else None


def outlook(trials: Sequence[Trial], jobs: int, guess_s: float | None) -> str:
    """Returns how many trials there are and how long they will take.

    Args:
        trials: All that were asked for.
        jobs: That run side by side.
        guess_s: Seconds of a trial, as the study says, for want of finished ones.
    """
    over = [trial for trial in trials if trial.is_final]
    begun = [trial for trial in trials if trial not in over and trial.folder is not None]
    open_trials = len(trials) - len(over)
    counts = [f"{len(trials)} trials", f"{len(over)} over"] if over else [f"{len(trials)} trials"]
    counts += [f"{len(begun)} begun"] if begun else []
    counts.append(f"{jobs} at a time")
    text = ", ".join(counts)
    seconds = [trial.run.read_summary()["wall_time_s"] for trial in over if trial.state == "completed"]
    if open_trials == 0:
        return text
    if seconds:
        return (
            f"{text}: about {_span(statistics.median(seconds) * -(-open_trials // jobs))} (median of those completed)"
        )
    if guess_s is not None:
        return f"{text}: about {_span(guess_s * -(-open_trials // jobs))} (the study's guess)"
    return text


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
