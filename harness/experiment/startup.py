"""What the time from the start of the process to the end of the first optimiser step goes to."""

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Phase(Enum):
    """Parts of the start, one behind the other."""

    imports = "imports"
    """The command line, and packages."""
    data = "data"
    """Rows tokenised and planned; weights are read meanwhile."""
    model = "model"
    """Waiting for the rest of the weights, and the model made of them."""
    tuner = "tuner"
    """Freeze policy, adapters and how they begin."""
    trainer = "trainer"
    """Optimiser groups, the table of what trains, Lightning."""


@dataclass(slots=True)
class Startup:
    """A clock that is read between phases."""

    started: float
    """`time.monotonic()` at the start of the process, of a warm trial when it was asked for."""
    warm: dict[str, Any] | None = None
    """What the trials before it in this process have left to it; None in a process of its own."""
    _ends: dict[Phase, float] = field(default_factory=dict)

    def end(self, phase: Phase) -> None:
        """Marks the end of a phase, and so the beginning of the next."""
        self._ends[phase] = time.monotonic()

    def seconds(self, first_step_at: float) -> dict[str, float]:
        """Returns the seconds of each phase, `first_step` last; their sum is the time to the first step.

        Args:
            first_step_at: `time.monotonic()` at the end of the first optimiser step.
        """
        ends = {phase.name: end for phase, end in self._ends.items()} | {"first_step": first_step_at}
        starts = [self.started, *ends.values()]
        return {name: end - start for (name, end), start in zip(ends.items(), starts, strict=False)}
