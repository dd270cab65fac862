"""Where a sample over `data.max_length` is cut: one contiguous piece, or several, none of which begins or ends inside
an image or video.

An image or video is a block: its tokens with the vision marks around them, a video's timestamps too. A block that does
not fit whole goes whole, with its pixels.
"""

import numpy as np


def cut(length: int, blocks_M2: np.ndarray, max_length: int, from_left: bool) -> tuple[int, int]:
    """Returns the half-open piece [start, end) of at most `max_length` tokens that is kept; it may be empty.

    Args:
        length: Tokens of the sample, more than `max_length`.
        blocks_M2: Half-open [start, end) of each block, ascending.
        max_length: Tokens to keep.
        from_left: Cut the first tokens, not the last.
    """
    edge = length - max_length if from_left else max_length
    for start, end in blocks_M2.tolist():
        if start < edge < end:
            edge = end if from_left else start
    return (edge, length) if from_left else (0, edge)


def split(length: int, blocks_M2: np.ndarray, max_length: int) -> list[tuple[int, int]] | None:
    """Returns consecutive pieces that cover the sample, or None where a block alone is over `max_length`."""
    if len(blocks_M2) and (blocks_M2[:, 1] - blocks_M2[:, 0]).max() > max_length:
        return None
    pieces, start = [], 0
    while start < length:
        end = start + min(max_length, length - start)
        inside = [low for low, high in blocks_M2.tolist() if low < end < high]
        end = inside[0] if inside else end
        pieces.append((start, end))
        start = end
    return pieces
