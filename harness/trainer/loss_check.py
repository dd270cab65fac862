"""Judges what each step brought: a loss or gradient that is no finite number, and a loss far above the last ones.

A loss is a spike if it lies `spike_mads` median absolute deviations above the median of the last finite ones, both of
which a few odd values do not move (Huber, "Robust Statistics", 1981, section 5.1), and by MIN_JUMP at least: where most
losses are near zero, one row that is hard is no event. A rise that stays becomes the median in time.

What is judged are the values that metrics.jsonl gets, so a resumed run comes to the same counts by reading its rows.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from harness.trainer.standard import OnNonfinite

MAX_OVERFLOWS = 20
"""Steps in a row that a gradient scaler may skip: it halves its scale each time, 2**16 to below 1."""
WINDOW = 100
"""Losses that a new one is compared with."""
MIN_LOSSES = 20
"""Of them there have to be, for a spread to mean something."""
MIN_JUMP = 0.5
"""Nats above the median that a spike has at least."""
SIGMA = 1.4826
"""Standard deviation of a normal distribution in median absolute deviations."""


class DivergedError(RuntimeError):
    """The loss or the gradient norm is no finite number any more."""

    step = 0
    """The optimiser step at which the run was given up."""


@dataclass(slots=True)
class LossCheck:
    """Counts and compares, step by step in order; every rank sees the same values and comes to the same verdicts."""

    on_nonfinite: OnNonfinite = OnNonfinite.stop
    max_nonfinite: int = 1
    """Steps in a row that are skipped at most, the last of which ends the run."""
    spike_mads: float | None = None
    """Median absolute deviations, as standard deviations, from which on a loss is a spike; None looks for none."""
    skips_overflow: bool = False
    """Under fp16 a gradient that overflows makes the scaler skip the step and lower its scale: no divergence."""
    nonfinite_steps: int = 0
    """So far in the run."""
    loss_spikes: int = 0
    """Likewise."""
    _row: int = 0
    """Steps in a row that were not finite."""
    _overflows: int = 0
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def look(self, loss: float, norm: float) -> "Verdict":
        """Judges a step.

        Args:
            loss: Of the whole step, nats per supervised token.
            norm: Of its gradients, before clipping.
        """
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if self.skips_overflow and math.isfinite(loss) and self._overflows:
            return Verdict(diverged=self._overflows >= MAX_OVERFLOWS)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.nonfinite_steps += 1
            self._row += 1
            stops = self.on_nonfinite is OnNonfinite.stop or self._row >= self.max_nonfinite
            return Verdict(
                {"train/nonfinite_steps": self.nonfinite_steps}, nonfinite_in_a_row=self._row, diverged=stops
            )
        self._row = 0
        text = self._spike(loss)
        self._losses.append(loss)
        if text is None:
            return Verdict()
        self.loss_spikes += 1
        return Verdict({"train/loss_spikes": self.loss_spikes}, spike=text)

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes in the rows of metrics.jsonl from before a resume."""
        for row in rows:
            if "train/loss" in row:
                self.look(row["train/loss"], row["train/grad_norm"])

    def _spike(self, loss: float) -> str | None:
        """Returns how far a loss is above the last ones, if that is far."""
        if self.spike_mads is None or len(self._losses) < MIN_LOSSES:
            return None
        middle = median(self._losses)
        spread = SIGMA * median(abs(value - middle) for value in self._losses)
        if loss <= middle + max(self.spike_mads * spread, MIN_JUMP):
            return None
        return f"loss {loss:.4g} is a spike: the last {len(self._losses)} have median {middle:.4g}, spread {spread:.2g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step was."""

    figures: dict[str, int] = field(default_factory=dict)
    """For its row of metrics.jsonl."""
    nonfinite_in_a_row: int = 0
    """Steps that were not finite, this one the last of them."""
    spike: str | None = None
    """How far its loss was above the others."""
    diverged: bool = False
    """Whether the run ends."""
