"""What a worker process of `decoding.py` runs. No torch here: each process imports this file."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.media.image import ImageRef
from harness.data.media.video_sampling import VideoSampling
from harness.data.row import Rows
from harness.data.row_error import RowError
from harness.data.template.text import shown

_FRAME = (32, 32)
"""Height and width that decoded frames are kept in: nobody looks at them."""

Task = tuple[int, tuple[int, ...]]
"""A row's number, and which of the things it shows are to be decoded, in the order in which it shows them."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes what rows show; travels to worker processes."""

    rows: Rows
    sampling: VideoSampling

    def __call__(self, tasks: Sequence[Task]) -> list[tuple[str, str]]:
        """Returns reason and message of each image and video that can not be decoded."""
        found = []
        for number, places in tasks:
            try:
                media = shown(self.rows[number])
            except RowError as error:
                found.append((error.reason, str(error)))
                continue
            for place in places:
                try:
                    ref = media[place]
                    ref.load() if isinstance(ref, ImageRef) else ref.frames(self.sampling, _FRAME)
                except RowError as error:
                    found.append((error.reason, str(error)))
        return found


_decoder: Decoder


def receive(payload: bytes) -> None:
    """Sets up a worker process; `payload` is a pickled decoder."""
    global _decoder
    _decoder = pickle.loads(payload)


def work_on(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """Decodes in a worker process."""
    return _decoder(tasks)
