"""A file with what the vision tower made of one image or video.

Shapes: F visual tokens, L levels (what stands in a token's place, then each level of DeepStack), E values.
A token's levels stand behind one another, so that an entry is one stretch of a batch's tensor and one read.

The check is a sum over each page of 4 KiB, and a CRC over the sums: it sees flipped bits, and pages that a crash left
empty or out of place, at the speed of memory; a CRC over all bytes would take as long as decoding the JPEG.
"""

import os
import secrets
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MAGIC = b"vitfeat1"
"""Ends in the number of the format."""
_HEADER = struct.Struct("<8s32s5I")
"""Magic, key, code of the type, F, L, E, check of the values; behind it the CRC of all these."""
HEADER_BYTES = _HEADER.size + 4
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
STAGED = ".part"
"""Ends the name of a file that is being written."""
_PAGE = 4096
_PIECE = 1 << 30
"""Most that one call reads: the operating system takes no more than 2 GiB."""


class DamagedError(Exception):
    """A file that is not the entry that its name says, or not whole."""


def num_bytes(features_FLE: Tensor) -> int:
    """Returns the length of the file of some features."""
    return HEADER_BYTES + features_FLE.numel() * features_FLE.element_size()


def write(path: Path, key: str, features_FLE: Tensor) -> None:
    """Writes an entry under another name and moves it into place: a file with an entry's name is whole.

    Several processes may write the same one. It is not synced: what a crash of the machine leaves fails the check.

    Args:
        path: The file; its folder is made if need be.
        key: 64 hex digits.
        features_FLE: On the CPU, contiguous.

    Raises:
        OSError: It can not be written.
    """
    content = _bytes(features_FLE)
    code = _TYPES.index(features_FLE.dtype)
    head = _HEADER.pack(_MAGIC, bytes.fromhex(key), code, *features_FLE.shape, _check(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f"{path.stem}.{secrets.token_hex(4)}{STAGED}")
    try:
        with open(staged, "wb", buffering=0) as file:
            file.write(head + zlib.crc32(head).to_bytes(4, "little"))
            for start in range(0, len(content), _PIECE):
                _write_all(file.fileno(), content[start : start + _PIECE])
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def read(path: Path, key: str) -> tuple[Tensor, os.stat_result]:
    """Returns the features of an entry, (F, L, E), and what the file system says of it.

    Args:
        path: The file.
        key: What it must be the entry of.

    Raises:
        DamagedError: It is not that, not whole, or its values changed.
        OSError: It is not there, or can not be read.
    """
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        head = file.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or zlib.crc32(head[:-4]).to_bytes(4, "little") != head[-4:]:
            raise DamagedError(f"{path}: its header is damaged")
        magic, found, code, f, l, e, check = _HEADER.unpack(head[:-4])  # noqa: E741
        if magic != _MAGIC or found.hex() != key or code >= len(_TYPES):
            raise DamagedError(f"{path}: is another entry")
        features_FLE = torch.empty(f, l, e, dtype=_TYPES[code])
        content = _bytes(features_FLE)
        if status.st_size != HEADER_BYTES + len(content) or _read_all(file.fileno(), content) < len(content):
            raise DamagedError(f"{path}: is not whole")
    if _check(content) != check:
        raise DamagedError(f"{path}: its values changed")
    return features_FLE, status


def _bytes(features_FLE: Tensor) -> np.ndarray:
    return features_FLE.view(torch.uint8).numpy().reshape(-1)


def _check(content: np.ndarray) -> int:
    whole = len(content) // _PAGE * _PAGE
    sums = content[:whole].view(np.uint64).reshape(-1, _PAGE // 8).sum(axis=1)
    return zlib.crc32(content[whole:].data, zlib.crc32(sums.data))


def _write_all(handle: int, content: np.ndarray) -> None:
    rest = content.data
    while len(rest):
        rest = rest[os.write(handle, rest) :]


def _read_all(handle: int, content: np.ndarray) -> int:
    """Fills an array from a file and returns how many bytes there were for it."""
    rest = content.data
    while len(rest):
        if not (count := os.readv(handle, [rest[:_PIECE]])):
            break
        rest = rest[count:]
    return len(content) - len(rest)
