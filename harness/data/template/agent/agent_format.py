"""What tells one agent format from another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.template.agent.call import Call


@dataclass(frozen=True, slots=True)
class AgentFormat:
    """A format in which a whole round of calls, results and reply is one assistant turn."""

    system: Callable[[Sequence[dict[str, Any]], str], str]
    """Makes the system message from the tools and the row's own system message, which may be empty."""
    calls: Callable[[Sequence[Call]], list[str]]
    """Writes calls that are made at once, one text each."""
    results: Callable[[str, Sequence[str]], tuple[str, str] | None]
    """Takes what the model has written since the last result, and what the tools gave back. Returns what the model
    writes before it stops for them, and what it reads then; None where it has called nothing."""


def below(system: str, text: str) -> str:
    """Puts the tools' text below the row's system message."""
    return f"{system}\n\n{text}" if system else text
