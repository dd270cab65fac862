"""Rows that say the same, and images that training and validation share, by content.

Two media files are the same where their bytes are. Files of unlike size can not be, so only files that share their size
with another one are read.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.data.account import LISTED
from harness.data.media.image import ImageRef
from harness.data.media.video import VideoRef
from harness.data.row import Message, Row
from harness.doctor.wording import counted

MAX_FILES = 20_000
"""Media files that are compared by content; further ones are told apart by their path."""
_BLOCK = 1 << 20

Identity = str | bytes
"""Path of a file that is yet to be compared, or a digest."""


@dataclass(slots=True)
class Prints:
    """Fingerprints of a split's rows, which are added one by one."""

    texts: list[bytes] = field(default_factory=list)
    media: list[tuple[Identity, ...]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keeps a digest of the row's text and the identity of what it shows."""
        spoken = [[_message(message) for message in row.messages], row.plain, list(row.tools)]
        self.texts.append(_digest(json.dumps(spoken, default=str).encode(errors="surrogatepass")))
        refs: list[ImageRef | VideoRef] = [*row.images, *row.videos]
        self.media.append(tuple(item for ref in refs for item in _identities(ref)))
        self.origins.append(row.origin)

    def paths(self) -> list[str]:
        """Returns the files that rows name."""
        return list(dict.fromkeys(item for items in self.media for item in items if isinstance(item, str)))


def compare(splits: dict[str, Prints]) -> dict[str, Any]:
    """Finds rows and images that come up more than once.

    Args:
        splits: By name. With two, the second is looked for in the first.

    Returns:
        For doctor.json: for each kind of finding how many there are, the first ten named, and the files left out.
    """
    # Validation goes first: where not all files are compared, its few are.
    paths = list(dict.fromkeys(path for prints in reversed(splits.values()) for path in prints.paths()))
    known = _by_content(paths[:MAX_FILES])
    rows = {name: _rows(prints, known) for name, prints in splits.items()}
    found: dict[str, Any] = {"files": len(paths), "files_compared": min(len(paths), MAX_FILES)}
    for name, prints in splits.items():
        found[f"rows_in_{name}"] = _repeated(rows[name], prints.origins)
    if len(splits) == 2:
        (train, val), (first, second) = splits.values(), rows.values()
        found["rows_across"] = _shared(_firsts(first, train.origins), second, val.origins)
        images = _firsts(*_flat(train, known))
        found["media_across"] = _shared(images, *_flat(val, known))
    return found


def findings(found: dict[str, Any]) -> list[str]:
    """Returns a message for each kind of duplicate."""
    told = {
        "rows_in_train": ("train: {} as an earlier one ({})", "row is the same", "rows are the same"),
        "rows_in_val": ("val: {} as an earlier one ({})", "row is the same", "rows are the same"),
        "rows_across": ("val: {} in train too, so it measures what was learnt by heart ({})", "row is", "rows are"),
        "media_across": ("val: {} in train too ({})", "image or video is", "images and videos are"),
    }
    messages = [
        text.format(counted(found[key]["number"], one, many), ", ".join(found[key]["first"][:3]))
        for key, (text, one, many) in told.items()
        if found.get(key, {}).get("number")
    ]
    if found["files"] > found["files_compared"]:
        messages.append(
            f"only the first {found['files_compared']:,} of {found['files']:,} media files were compared by content"
        )
    return messages


def _message(message: Message) -> list[Any]:
    parts = [part if isinstance(part, str) else [part.name] for part in message.parts]
    return [message.role, parts, message.weight]


def _identities(ref: ImageRef | VideoRef) -> list[Identity]:
    source = ref.source
    if isinstance(source, tuple):
        return [item for frame in source for item in _identities(frame)]
    if isinstance(source, str | bytes):
        return [source if isinstance(source, str) else _digest(source)]
    return [_digest(source.tobytes() + repr((source.mode, source.size)).encode())]


def _by_content(paths: Sequence[str]) -> dict[Identity, bytes]:
    """Returns a digest for each file that can be read; files of a size of their own are not."""
    sizes: defaultdict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            sizes[os.stat(path).st_size].append(path)
        except OSError:
            continue  # the account has the row among the skipped ones
    digests: dict[Identity, bytes] = {}
    for same in sizes.values():
        for path in same:
            try:
                digests[path] = _file_digest(path) if len(same) > 1 else _digest(path.encode(errors="surrogateescape"))
            except OSError:
                continue  # as above
    return digests


def _file_digest(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


def _rows(prints: Prints, known: dict[Identity, bytes]) -> list[tuple[Any, ...]]:
    return [
        (text, *(known.get(item, item) for item in items))
        for text, items in zip(prints.texts, prints.media, strict=True)
    ]


def _flat(prints: Prints, known: dict[Identity, bytes]) -> tuple[list[Identity], list[str]]:
    """Returns everything that the rows show, each thing once, and the row that shows it first."""
    firsts: dict[Identity, str] = {}
    for items, origin in zip(prints.media, prints.origins, strict=True):
        for item in items:
            named = f"{origin} {item}" if isinstance(item, str) else origin
            firsts.setdefault(known.get(item, item), named)
    return list(firsts), list(firsts.values())


def _firsts(keys: Sequence[Any], origins: Sequence[str]) -> dict[Any, str]:
    firsts: dict[Any, str] = {}
    for key, origin in zip(keys, origins, strict=True):
        firsts.setdefault(key, origin)
    return firsts


def _repeated(keys: Sequence[Any], origins: Sequence[str]) -> dict[str, Any]:
    firsts = _firsts(keys, origins)
    again = [f"{origin} = {firsts[key]}" for key, origin in zip(keys, origins, strict=True) if firsts[key] != origin]
    return {"number": len(again), "first": again[:LISTED]}


def _shared(firsts: dict[Any, str], keys: Sequence[Any], origins: Sequence[str]) -> dict[str, Any]:
    again = [f"{origin} = {firsts[key]}" for key, origin in zip(keys, origins, strict=True) if key in firsts]
    return {"number": len(again), "first": again[:LISTED]}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
