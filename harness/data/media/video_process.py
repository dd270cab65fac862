"""Asks a process of its own to read a video, and ends that process when it takes too long.

A decoder that hangs inside C can not be interrupted from Python, and one that crashes takes its process along; a
killed process is started anew for the next video. Each process that reads videos (a worker of the loader or of the
planning) keeps one such child; starting it takes some tenths of a second, asking it well under a millisecond.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError

_SCRIPT = Path(__file__).with_name("video_child.py")
_START_LIMIT_S = 120.0
_lock = threading.Lock()
_child: "_Child | None" = None


class VideoFailed(Exception):
    """A video that can not be read; the two arguments are reason and explanation."""


def probe(source: str | bytes, max_pixels: int, time_limit_s: float) -> dict[str, Any]:
    """Returns `num_frames`, `rate`, `height`, `width` and `rotation` (degrees counter-clockwise) of a video.

    Raises:
        VideoFailed: It can not be read, or not in time.
        UserError: PyAV is not installed.
    """
    return _ask(source, {"indices": None, "max_pixels": max_pixels}, time_limit_s)[0]


def decode(source: str | bytes, request: dict[str, Any], time_limit_s: float) -> tuple[list[np.ndarray], int]:
    """Decodes frames to RGB.

    Args:
        source: Path, or content of a file.
        request: `indices` of the frames, `rotation` as `probe` tells it, `max_pixels`, and `size` (height, width) to
            which each frame is resized, or None.
        time_limit_s: Longest wait for all of them.

    Returns:
        The frames that exist, each (H, W, 3) uint8, and how many frames the file has up to the last wanted one.

    Raises:
        VideoFailed: As for `probe`.
        UserError: As for `probe`.
    """
    reply, frames = _ask(source, request, time_limit_s)
    return frames, reply["num_decoded"]


def _ask(source: str | bytes, request: dict[str, Any], time_limit_s: float) -> tuple[dict[str, Any], list[np.ndarray]]:
    global _child
    with _lock:
        if _child is None or _child.process.poll() is not None:
            _child = _Child()
        path = source if isinstance(source, str) else None
        message = json.dumps(request | {"path": path, "time_limit_s": time_limit_s}).encode()
        whole = False
        try:
            reply, frames = _child.ask(message, source if isinstance(source, bytes) else None, time_limit_s)
            whole = True
        finally:
            if not whole:  # its answer would be taken for that to the next request
                _child.end()
                _child = None
    if "reason" in reply:
        raise VideoFailed(reply["reason"], reply["detail"])
    return reply, frames


class _Child:
    """The process, and the pipes to it."""

    def __init__(self) -> None:
        if importlib.util.find_spec("av") is None:
            raise UserError("videos need PyAV: pip install 'qwen3-vl-harness[video]'")
        # -P: the script's folder must not come before the installed packages.
        command = [sys.executable, "-P", str(_SCRIPT)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        # Copies, each closed once: by the connection here, by the process object there.
        self.requests = Connection(os.dup(self.process.stdin.fileno()), readable=False)
        self.answers = Connection(os.dup(self.process.stdout.fileno()), writable=False)
        self.process.stdin.close()
        self.process.stdout.close()
        if not self.answers.poll(_START_LIMIT_S):
            self.end()
            raise UserError(f"the process that reads videos did not start within {_START_LIMIT_S:g} s")
        try:
            self.answers.recv_bytes()
        except EOFError as error:
            self.end()
            raise UserError("the process that reads videos does not start; its message stands above") from error

    def ask(self, message: bytes, content: bytes | None, limit_s: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Sends a request and waits for its answer."""
        end = time.monotonic() + limit_s
        frames: list[np.ndarray] = []
        try:
            self.requests.send_bytes(message)
            if content is not None:
                self.requests.send_bytes(content)
            while True:
                reply = json.loads(self._receive(end, limit_s))
                if "shape" not in reply:
                    return reply, frames
                frames.append(np.frombuffer(self._receive(end, limit_s), dtype=np.uint8).reshape(reply["shape"]))
        except (EOFError, OSError) as error:
            raise VideoFailed("broken video", "makes the decoder crash") from error

    def _receive(self, end: float, limit_s: float) -> bytes:
        if not self.answers.poll(max(0.0, end - time.monotonic())):
            raise VideoFailed("broken video", f"is not decoded after {limit_s:g} s (data.video.time_limit_s)")
        return self.answers.recv_bytes()

    def end(self) -> None:
        """Kills the process; one that the kernel holds in a read is left behind to die when the read ends."""
        self.requests.close()
        self.answers.close()
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)


def _forget() -> None:
    """After a fork the child belongs to the parent process, and its pipes and lock may be in use there."""
    global _child, _lock
    if _child is not None:
        _child.requests.close()
        _child.answers.close()
        _child.process.returncode = 0  # it can not be waited for here, and is not to be warned about
    _child, _lock = None, threading.Lock()


@atexit.register
def _end() -> None:
    global _child
    if _child is not None:
        _child.end()
        _child = None


os.register_at_fork(after_in_child=_forget)
