"""What a tracker has to know about a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True, slots=True)
class RunInfo:
    """The identity of a run, as given to the builders of this group."""

    folder: Path
    """The run folder; trackers write below it."""
    run_id: str
    """Made at the first start; a run that is resumed keeps it."""
    name: str
    """What to call the run in lists."""
    group: str | None = None
    """Name of the study or sweep that the run belongs to."""
    tags: list[str] = field(default_factory=list)
    """Model, tuner, freeze policy and data, to filter by."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config as nested dicts, lists, strings and numbers."""
    initial_step: int = 0
    """The step that a resumed run goes on from. What metrics.jsonl has up to there is logged again first; what was
    logged after it is measured again."""
