"""Cuts text tokens from one end of a sample; images, their markers and the order of the rest stay whole."""

import numpy as np


def cut(
    ids_S: np.ndarray, spans_N2: np.ndarray, protected_S: np.ndarray, max_length: int, from_left: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Removes the outermost unprotected tokens until `max_length` remain.

    Args:
        ids_S: Token ids.
        spans_N2: Half-open [start, end) of each supervised span.
        protected_S: True at tokens that must stay: images and their markers.
        max_length: Tokens to keep; fewer than S.
        from_left: Cut the first text tokens, not the last.

    Returns:
        The remaining ids and spans, or None where the protected tokens alone are too many. Spans that vanished are
        left out, and none begins at 0: nothing would predict that token.
    """
    text = np.flatnonzero(~protected_S)
    surplus = len(ids_S) - max_length
    if surplus > len(text):
        return None
    keep = np.ones(len(ids_S), dtype=bool)
    keep[text[:surplus] if from_left else text[len(text) - surplus :]] = False
    new_index = np.concatenate([[0], np.cumsum(keep)])
    spans = new_index[spans_N2]
    spans[:, 0] = np.maximum(spans[:, 0], 1)
    return ids_S[keep], spans[spans[:, 0] < spans[:, 1]].astype(spans_N2.dtype)
