"""Reads video files with PyAV, in a process of its own that can be killed (`video_process.py` is the other end).

It runs as a script, so it imports nothing of the harness. A request is a JSON message, perhaps followed by the content
of a file; the answer is a JSON message, for decoded frames preceded by one and the pixels for each of them.
"""

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

FORMATS = (
    "3g2,3gp,asf,av1,avi,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,vvc,webm,wtv,yuv4mpegpipe"
)
"""Playlists and scripts are left out: they name other files and addresses, which would be opened unasked."""
DEFAULT_RATE = 24.0
"""Where the file does not tell its frames a second; transformers takes the same."""
_SPARE_S = 5.0
"""The parent ends this process at the time limit; where the parent is gone, the kernel does so this much later."""
_THREADS = 4


class Unusable(Exception):
    """The video can not be used; the two arguments are reason and explanation."""


@contextlib.contextmanager
def opened(source: str | io.BytesIO) -> Iterator[tuple[Any, Any]]:
    """Opens a container and finds its first real video stream."""
    import av

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(source, mode="r", options=options) as container:
        # The cover of a piece of music is a video stream too.
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise Unusable("broken video", "has no video stream")
        yield container, streams[0]


def probe(source: str | io.BytesIO, max_pixels: int) -> dict[str, Any]:
    """Returns number of frames, frames a second, height, width, and the rotation that makes it upright.

    PyAV shows a stream's rotation on its frames alone, so one frame is decoded.
    """
    with opened(source) as (container, stream):
        height, width = stream.height, stream.width
        check(height, width, max_pixels)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise Unusable("broken video", "has no frame that can be decoded")
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        found = {"rate": rate, "height": height, "width": width, "rotation": frame.rotation % 360}
        known = stream.frames or round(duration(container, stream) * rate)
    return found | {"num_frames": known or count_packets(source)}


def duration(container: Any, stream: Any) -> float:
    """Returns the length in seconds, 0 where the file does not tell it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def count_packets(source: str | io.BytesIO) -> int:
    """Counts the frames of a file that tells neither their number nor its length, without decoding them."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with opened(source) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


def decode(source: str | io.BytesIO, request: dict[str, Any], output: Connection) -> int:
    """Sends the wanted frames and returns how many the file has up to the last of them."""
    import numpy as np
    from PIL import Image

    wanted, size, seen = set(request["indices"]), request["size"], 0
    last = max(wanted)
    with opened(source) as (container, stream):
        stream.thread_type, stream.codec_context.thread_count = "AUTO", _THREADS
        for frame in container.decode(stream):
            if seen in wanted:
                check(frame.height, frame.width, request["max_pixels"])
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), request["rotation"] // 90)
                if size is not None and pixels.shape[:2] != tuple(size):
                    pixels = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
                output.send_bytes(json.dumps({"shape": pixels.shape}).encode())
                output.send_bytes(np.ascontiguousarray(pixels).data.cast("B"))
            seen += 1
            if seen > last:
                break
    return seen


def check(height: int, width: int, max_pixels: int) -> None:
    """Refuses frames that are too large, before they are converted."""
    if height < 1 or width < 1:
        raise Unusable("broken video", "does not tell the size of its frames")
    if height * width > max_pixels:
        limit = f"{max_pixels:,} (data.image.max_pixels_decoded)"
        raise Unusable("too large", f"has frames of {width:,} x {height:,} pixels, more than {limit}; shrink it")


def answer(request: dict[str, Any], content: bytes | None, output: Connection) -> dict[str, Any]:
    """Does what a request asks; whatever a decoder raises becomes an answer."""
    source = request["path"] if content is None else io.BytesIO(content)
    try:
        if request["indices"] is None:
            return probe(source, request["max_pixels"])
        return {"num_decoded": decode(source, request, output)}
    except Unusable as error:
        return {"reason": error.args[0], "detail": error.args[1]}
    except Exception as error:  # libraries raise nearly anything on damaged files
        if isinstance(error, FileNotFoundError):
            return {"reason": "missing video", "detail": "can not be opened: no such file"}
        # What FFmpeg logged last depends on which of its threads came first, and a row that fails is known by its text.
        said = str(error).partition("; last error log:")[0]
        return {"reason": "broken video", "detail": f"can not be decoded ({said})"}


def serve() -> None:
    """Answers requests until the other end closes."""
    # Libraries may print; what they print must not stand between the messages.
    output = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)
    requests = Connection(os.dup(0), writable=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process in its own time

    import av

    av.logging.set_level(av.logging.PANIC)
    output.send_bytes(b"{}")
    while True:
        try:
            request = json.loads(requests.recv_bytes())
            content = requests.recv_bytes() if request["path"] is None else None
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, request["time_limit_s"] + _SPARE_S)
        reply = answer(request, content, output)
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    try:
        serve()
    except BrokenPipeError:
        sys.exit(1)
