"""Which frames of a video are seen, and the times written before them, as transformers' Qwen3-VL processor has it.

The arithmetic is that of `Qwen3VLVideoProcessor.sample_frames` and `Qwen3VLProcessor._calculate_timestamps`, down to
its order of operations; those classes themselves need torchvision.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """Frames that are seen of a video; the meaning of the first three is that of `data.video`."""

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    temporal_patch_size: int = 2
    """Frames that become one patch in time, and share a timestamp."""


def frame_indices(num_frames: int, rate: float, fps: float, sampling: VideoSampling) -> list[int]:
    """Returns which of a video's frames are seen, in order.

    Args:
        num_frames: Frames that the video has.
        rate: Frames a second that it has.
        fps: Frames a second that are wanted, in place of the sampling's own.
        sampling: The bounds on their number.
    """
    wanted = int(num_frames / rate * fps)
    return spread(num_frames, min(max(wanted, sampling.min_frames), sampling.max_frames, num_frames))


def spread(num_frames: int, wanted: int) -> list[int]:
    """Returns so many frames, evenly spread from the first to the last."""
    return [int(index) for index in np.linspace(0, num_frames - 1, wanted).round()]


def timestamps(indices: list[int], rate: float, temporal_patch_size: int) -> tuple[float, ...]:
    """Returns the time of each temporal patch in seconds: the mean of its first and its last frame.

    An incomplete patch at the end is filled with the last frame.
    """
    filled = indices + indices[-1:] * (-len(indices) % temporal_patch_size)
    times = [index / rate for index in filled]
    last = temporal_patch_size - 1
    return tuple((times[i] + times[i + last]) / 2 for i in range(0, len(times), temporal_patch_size))
