"""Position ids of Qwen3-VL's interleaved mRoPE (Qwen3-VL technical report, 2025), with a text row on top.

Text counts up by one in all rows. An image that begins at position p has t = p, h = p + its row, w = p + its column
after merging, and the text behind it goes on at p + max(rows, columns). Two frames of a video count as an image, with
their timestamp as text between. Equals `Qwen3VLModel.get_rope_index`, but for one sample and without a model, so that
loader workers can run it.
"""

import numpy as np


def position_ids(visual_S: np.ndarray, grids_N3: np.ndarray, merge_size: int) -> np.ndarray:
    """Returns int64 position ids of shape (4, S): text position, then t, h, w.

    Args:
        visual_S: True at image and video tokens of one sample, expanded.
        grids_N3: (1, h, w) of each image, and of each two frames of a video, in patches, before merging.
        merge_size: Patches merged along each side into one token.
    """
    length = len(visual_S)
    positions = np.empty((4, length), dtype=np.int64)
    positions[0] = np.arange(length)
    visual_tokens = np.flatnonzero(visual_S)
    index, position, seen = 0, 0, 0
    for t, h, w in (grids_N3 // (1, merge_size, merge_size)).tolist():
        start = int(visual_tokens[seen])
        seen += t * h * w
        positions[1:, index:start] = np.arange(position, position + start - index)
        position += start - index
        index = start + t * h * w
        positions[1:, start:index] = np.indices((t, h, w)).reshape(3, -1) + position
        position += max(h, w)
    positions[1:, index:] = np.arange(position, position + length - index)
    return positions
