"""A turn as all formats are read into it, before media are looked up and boxes are written."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from harness.data.row import Media

WRITTEN = ("assistant", "tool_call")
"""Roles of what the model writes."""


class Mark(Enum):
    """Stands in a text for an entry of the row's `objects`."""

    ref = "<ref-object>"
    box = "<bbox>"


@dataclass(frozen=True, slots=True)
class Place:
    """Stands where an image or a video is shown."""

    kind: Media
    entry: Any = None
    """What the turn itself names; None takes the next of the row's `images` or `videos`."""


Piece = str | Place | Mark


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of any format."""

    role: str
    """One of `harness.data.row.ROLES`."""
    pieces: tuple[Piece, ...]
    weight: float | None = None
    """As `harness.data.row.Message.weight`."""
