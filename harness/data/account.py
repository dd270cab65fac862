"""What became of every row of a split: the numbers add up to the rows in the files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

LISTED = 10
"""Rows that are named for each reason."""


@dataclass(slots=True)
class Reasons:
    """Rows of one fate, counted by reason, the first few named."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, named: str, number: int = 1) -> None:
        """Counts rows for a reason; `named` says which, or the first of them."""
        self.counts[reason] += number
        listed = self.first.setdefault(reason, [])
        if len(listed) < LISTED:
            listed.append(named)

    @property
    def total(self) -> int:
        """Rows of all reasons."""
        return self.counts.total()

    def plain(self) -> dict[str, Any]:
        """Returns counts and names for JSON."""
        return {reason: {"rows": count, "first": self.first[reason]} for reason, count in self.counts.most_common()}

    def text(self) -> str:
        """Returns `3 missing image, 1 not JSON (first: rows.jsonl:7)`."""
        if not self.counts:
            return ""
        named = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())
        return f"{named} (first: {self.first[self.counts.most_common(1)[0][0]][0]})"


@dataclass(slots=True)
class Account:
    """One split. `rows` is the sum of used, skipped and dropped rows."""

    rows: int
    skipped: Reasons = field(default_factory=Reasons)
    """Could not be used (`data.on_error=skip`)."""
    dropped: Reasons = field(default_factory=Reasons)
    """Could be, but not within the settings: too long, or nothing to learn."""
    truncated: Reasons = field(default_factory=Reasons)
    """Used in part, or in several pieces (`data.truncation`)."""
    resized: Reasons = field(default_factory=Reasons)
    """Used, with an image made smaller or larger by the bounds on its tokens."""
    samples: int = 0
    tokens: int = 0
    visual_tokens: int = 0
    supervised_tokens: int = 0
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    """Origin, reason and detail of rows that failed when they were loaded; they are among the skipped."""

    @property
    def used(self) -> int:
        """Rows of which at least a part is used."""
        return self.rows - self.skipped.total - self.dropped.total

    def leave_out(self, skipped: Iterable[tuple[str, str, str]]) -> list[str]:
        """Counts rows whose media failed when they were loaded, each once however often it comes up.

        Args:
            skipped: Origin, reason and detail of each.

        Returns:
            A message for each that is new.
        """
        told = []
        for origin, reason, detail in skipped:
            if all(origin != known for known, _, _ in self.left_out):
                self.left_out.append((origin, reason, detail))
                self.skipped.add(reason, f"{origin}: {detail}")
                told.append(f"{origin}: {detail}")
        return told

    def plain(self) -> dict[str, Any]:
        """Returns all of it for summary.json."""
        return {
            "rows": self.rows,
            "used": self.used,
            "samples": self.samples,
            "tokens": self.tokens,
            "visual_tokens": self.visual_tokens,
            "supervised_tokens": self.supervised_tokens,
            "skipped": self.skipped.plain(),
            "dropped": self.dropped.plain(),
            "truncated": self.truncated.plain(),
            "resized": self.resized.plain(),
        }

    def text(self) -> str:
        """Returns one line for the log."""
        parts = [f"{self.used:,} of {self.rows:,} rows"]
        for name in ("skipped", "dropped", "truncated", "resized"):
            reasons: Reasons = getattr(self, name)
            parts += [f"{reasons.total:,} {name}: {reasons.text()}"] if reasons.total else []
        counts = f"{self.tokens:,} tokens, {self.visual_tokens:,} visual, {self.supervised_tokens:,} supervised"
        return ", ".join([*parts, counts])
