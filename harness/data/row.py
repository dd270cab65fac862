"""The canonical row that every format becomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef
from harness.data.row_error import RowError

ROLES = ("system", "user", "assistant", "tool_call", "tool_response")


class Media(Enum):
    """Stands in a message's text where the row's next image or video is shown."""

    image = "image"
    video = "video"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of `ROLES`; a `tool_call` is written by the model, a `tool_response` is read by it."""
    parts: tuple[str | Media, ...]
    weight: float | None = None
    """Loss weight of the turn's tokens, 0 for none; None leaves it to `data.loss_scale`."""

    @property
    def text(self) -> str:
        """The turn's text without its images and videos."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Rejected:
    """The answer of a preference row that the other one is better than."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation, or one text, with what it shows in the order in which it shows it."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()
    origin: str
    """Where it came from, for messages: `file.jsonl:12`."""
    plain: bool = False
    """Pre-training text: the one message is learnt as it stands, without a chat template."""
    tools: tuple[Any, ...] = ()
    """JSON schemas of the functions that the model may call."""
    channel: str | None = None
    """Name under which its loss can be told apart."""
    rejected: Rejected | None = None
    """Of a preference row: the worse conversation, whole."""
    label: bool | None = None
    """KTO: whether the answer is desirable."""
    min_pixels: int | None = None
    """Bound on its images that takes the place of `data.image.min_tokens`."""
    max_pixels: int | None = None
    """Bound on its images that takes the place of `data.image.max_tokens`."""


class Rows(Protocol):
    """Rows by number. Read again from their file each time: only numbers and offsets stay in memory."""

    @property
    def fingerprint(self) -> str:
        """Hash of the content; equal fingerprints mean equal rows, but for the media files that they name."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> Row:
        """Returns the row; raises RowError where it can not be used."""

    def origin(self, index: int) -> str:
        """Returns `file.jsonl:12` without reading the row."""


@dataclass(frozen=True, slots=True)
class ListRows:
    """Rows that are in memory."""

    rows: Sequence[Row]
    fingerprint: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Returns the row."""
        return self.rows[index]

    def origin(self, index: int) -> str:
        """Returns where the row came from."""
        return self.rows[index].origin


@runtime_checkable
class RowStream(Protocol):
    """Rows in the order of their files, without end and without a number of rows (`data.streaming`)."""

    @property
    def fingerprint(self) -> str:
        """Hash of what can be known without reading the rows."""

    def read(self, rank: int, world_size: int, seed: int) -> Iterator[Row | RowError]:
        """Yields this rank's share as `Row`, or `RowError` for one that can not be used, epoch after epoch."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a data set's builder returns."""

    train: Rows | RowStream
    val: Rows
    fingerprint: str
    """sha256 over the content; equal fingerprints mean equal rows."""
