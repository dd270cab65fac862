"""`manifest.json` of a checkpoint: size and sha256 of every file of its folder, written last and checked before a load.

A flipped byte loads without an error in torch.load, torch.distributed.checkpoint and safetensors, and the pickles of
the latter two loaders' relatives run code: so a checkpoint is looked at by nobody before its manifest fits. It guards
against disks and cut-off writes, not against somebody who writes a manifest of his own.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from harness.trainer.durable import sync, write_text

NAME = "manifest.json"
START = "../start.safetensors"
"""Beside the steps: where a computed start of an adapter is kept, without which none of them is of use."""
_VERSION = 1
_THREADS = 8
"""Files that are hashed at once; hashlib lets other threads run."""


class Entry(NamedTuple):
    """What a manifest says of a file."""

    size: int
    """In bytes."""
    sha256: str


def write(folder: Path, step: int, known: Mapping[str, Entry]) -> int:
    """Writes the manifest of a folder, and waits until it is on the disk.

    Args:
        folder: The checkpoint's, with all its files.
        step: Number of the step.
        known: What is known of files from writing them; the others are read.

    Returns:
        Bytes of all files.
    """
    names = {*_files(folder), *([START] if (folder / START).is_file() else [])}
    entries = {**_hash(folder, names - known.keys()), **known}
    write_text(folder / NAME, _text(step, entries))
    sync(folder)
    return sum(entry.size for entry in entries.values())


def fault(folder: Path, step: int) -> str | None:
    """Returns what is wrong with a checkpoint, in a line that begins with the file's name; None: nothing.

    Args:
        folder: The checkpoint's.
        step: Number that its name has.
    """
    try:
        written = (folder / NAME).read_bytes()
        listed = _parse(written)
        if listed is None:
            return f"{NAME}: not readable"
        present = _files(folder) | ({START} & listed.keys() if (folder / START).is_file() else set())
        for name in sorted(listed.keys() | present):
            if (found := _obvious(folder, name, listed.get(name), name in present)) is not None:
                return f"{name}: {found}"
        entries = _hash(folder, listed)
    except FileNotFoundError as error:
        return f"{os.path.relpath(error.filename, folder)}: missing"
    except OSError as error:
        return f"{os.path.relpath(error.filename or folder, folder)}: {error.strerror}"
    for name, entry in sorted(entries.items()):
        if entry != listed[name]:
            return f"{name}: content is not what was written (sha256)"
    return None if written == _text(step, listed).encode() else f"{NAME}: not what was written for step {step}"


def _obvious(folder: Path, name: str, entry: Entry | None, present: bool) -> str | None:
    """Returns what shows without reading a file."""
    if not present:
        return "missing"
    if entry is None:
        return f"not in {NAME}"
    size = (folder / name).stat().st_size
    return None if size == entry.size else f"has {size:,} bytes, {entry.size:,} were written"


def _files(folder: Path) -> set[str]:
    """Returns all that is no folder, without the manifest; a link counts as a file that nobody wrote."""
    found = set()
    for path, folders, names in os.walk(folder):
        links = [name for name in folders if Path(path, name).is_symlink()]
        found |= {Path(path, name).relative_to(folder).as_posix() for name in (*names, *links)}
    return found - {NAME}


def _hash(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Reads files, several at once, the largest first."""
    ordered = sorted(names, key=lambda name: -(folder / name).stat().st_size)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(ordered, pool.map(lambda name: _entry(folder / name), ordered), strict=True))


def _entry(path: Path) -> Entry:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256")
        return Entry(file.tell(), found.hexdigest())


def _text(step: int, entries: Mapping[str, Entry]) -> str:
    files = {name: entry._asdict() for name, entry in sorted(entries.items())}
    return json.dumps({"version": _VERSION, "step": step, "files": files}, indent=1) + "\n"


def _parse(written: bytes) -> dict[str, Entry] | None:
    """Returns the entries, or None for what is no manifest."""
    try:
        files = json.loads(written)["files"]
        entries = {str(name): Entry(int(item["size"]), str(item["sha256"])) for name, item in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    outside = [name for name in entries if name != START and (name.startswith("/") or ".." in Path(name).parts)]
    return None if outside else entries
