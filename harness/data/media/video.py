"""References to videos: shape and timestamps from the container, pixels when a worker needs them."""

import logging
import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from harness.data.media import video_process
from harness.data.media.image import MAX_PIXELS, ImageRef
from harness.data.media.video_sampling import VideoSampling, frame_indices, spread, timestamps
from harness.data.row_error import RowError

__all__ = ["VideoRef", "VideoSampling", "VideoShape"]

log = logging.getLogger(__name__)

MAX_ASPECT_RATIO = 190
"""Qwen's `smart_resize` refuses 200, after it has rounded the sides of small frames."""
SLACK_S = 0.5
"""A container may claim this much more than it holds: its length is often rounded up, or that of its sound."""


@dataclass(frozen=True, slots=True)
class VideoShape:
    """What the model will see of a video."""

    num_frames: int
    """Frames that are sampled."""
    height: int
    """Pixels, upright, before any resizing."""
    width: int
    timestamps: tuple[float, ...]
    """Seconds; one for each temporal patch."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which frames to take of a source, and how large and how turned they are."""

    indices: list[int]
    num_frames: int
    rate: float
    height: int
    width: int
    rotation: int = 0
    """Degrees counter-clockwise."""


@dataclass(frozen=True, slots=True)
class VideoRef:
    """One video of one row."""

    source: str | bytes | tuple[ImageRef, ...]
    """Path, content of a file, or frames."""
    origin: str
    """Row that shows it, for messages: `file.jsonl:12`."""
    fps: float | None = None
    """Of a file: frames a second to sample, in place of `data.video.fps`. Of a list of frames: how many a second it
    holds; None takes them as sampled already, at `data.video.fps`."""
    time_limit_s: float = 60.0
    """Longest decoding."""
    max_pixels: int = MAX_PIXELS
    """Frames of more pixels are refused."""

    @property
    def path(self) -> str | None:
        """The file, where the video is one."""
        return self.source if isinstance(self.source, str) else None

    def stamp(self) -> tuple[int, int] | None:
        """Returns (bytes, modification time in ns) of a file, or the total and the newest of its frames' files.

        Raises:
            RowError: A file is not there.
        """
        if isinstance(self.source, tuple):
            stamps = [stamp for frame in self.source if (stamp := frame.stamp()) is not None]
            return (sum(size for size, _ in stamps), max(time for _, time in stamps)) if stamps else None
        if self.path is None:
            return None
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._error("missing video", "can not be opened: no such file") from error
        return status.st_size, status.st_mtime_ns

    def probe(self, sampling: VideoSampling) -> VideoShape:
        """Returns what `frames` will give, from the container's header and its first frame.

        The number of frames is the header's, or else that of its length and rate, or else that of its packets.

        Raises:
            RowError: No video, over the pixel limit, too long and narrow, or not read in time.
            UserError: PyAV is not installed.
        """
        plan = self._plan(sampling)
        times = timestamps(plan.indices, plan.rate, sampling.temporal_patch_size)
        return VideoShape(len(plan.indices), plan.height, plan.width, times)

    def frames(self, sampling: VideoSampling, size: tuple[int, int] | None = None) -> list[np.ndarray]:
        """Decodes the sampled frames, upright.

        Args:
            sampling: The same as for `probe`.
            size: (height, width) to which each frame is resized as soon as it is decoded, which keeps a long video of
                large frames from filling the memory; None keeps them as they are.

        Returns:
            RGB, (H, W, 3) uint8 each.

        Raises:
            RowError: As for `probe`, or it is damaged or not decoded in time.
            UserError: PyAV is not installed.
        """
        plan = self._plan(sampling)
        if isinstance(self.source, tuple):
            return [_resized(self.source[index].load(), size) for index in plan.indices]
        request = {
            "indices": plan.indices,
            "rotation": plan.rotation,
            "size": size,
            "max_pixels": self.max_pixels,
        }
        try:
            frames, num_decoded = video_process.decode(self.source, request, self.time_limit_s)
        except video_process.VideoFailed as error:
            raise self._error(*error.args) from error
        if missing := len(plan.indices) - len(frames):
            if not frames or plan.num_frames - num_decoded > max(1.0, plan.rate * SLACK_S):
                raise self._error("broken video", f"breaks off after {num_decoded} of {plan.num_frames} frames")
            log.info("%s: the last frame stands for %d that the file claims and lacks", self.origin, missing)
            frames += frames[-1:] * missing
        if any(frame.shape != frames[0].shape for frame in frames):
            raise self._error("broken video", "changes the size of its frames; convert it to one size")
        return frames

    def _plan(self, sampling: VideoSampling) -> _Plan:
        plan = self._plan_frames(self.source, sampling) if isinstance(self.source, tuple) else self._plan_file(sampling)
        if max(plan.height, plan.width) > MAX_ASPECT_RATIO * min(plan.height, plan.width):
            what = f"is {plan.width} x {plan.height}: its aspect ratio is over {MAX_ASPECT_RATIO}; crop it"
            raise self._error("aspect ratio", what)
        return plan

    def _plan_file(self, sampling: VideoSampling) -> _Plan:
        assert not isinstance(self.source, tuple)
        try:
            found = video_process.probe(self.source, self.max_pixels, self.time_limit_s)
        except video_process.VideoFailed as error:
            raise self._error(*error.args) from error
        num_frames, rate, rotation = found["num_frames"], found["rate"], found["rotation"]
        if num_frames < 1:
            raise self._error("broken video", "has no frames")
        sides = found["height"], found["width"]
        height, width = sides[::-1] if rotation in (90, 270) else sides
        indices = frame_indices(num_frames, rate, self.fps or sampling.fps, sampling)
        return _Plan(indices, num_frames, rate, height, width, rotation)

    def _plan_frames(self, frames: tuple[ImageRef, ...], sampling: VideoSampling) -> _Plan:
        if self.fps is None:
            rate, indices = sampling.fps, spread(len(frames), min(len(frames), sampling.max_frames))
        else:
            rate, indices = self.fps, frame_indices(len(frames), self.fps, sampling.fps, sampling)
        sizes = {frames[index].probe() for index in indices}
        if len(sizes) != 1:
            shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:3])
            raise self._error("broken video", f"has frames of unlike sizes ({shown}); give them one size")
        return _Plan(indices, len(frames), rate, *sizes.pop())

    def _error(self, reason: str, what: str) -> RowError:
        name = repr(self.source) if isinstance(self.source, str) else "in the row"
        return RowError(self.origin, reason, f"video {name} {what}")


def _resized(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    if size is not None and (image.height, image.width) != size:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)
