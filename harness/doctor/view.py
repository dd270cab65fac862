"""A few samples as the model reads them: tokens decoded again, images in brackets, what is learnt marked."""

from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.text import Text

from harness.data.index.samples import SampleIndex
from harness.data.media.video import VideoRef
from harness.data.row_error import RowError
from harness.data.template.encoder import EncodedSample, Encoder

NUMBER = 5
"""Samples that are shown."""
OPEN, CLOSE = "⟦", "⟧"
"""Stand around what is learnt where there is no colour."""
_LONGEST = 600
"""Characters of a stretch of text that are shown; more is cut in its middle."""

Stretch = tuple[str, float]
"""Text, and its loss weight."""


def choose(samples: SampleIndex, seed: int) -> list[int]:
    """Returns the first sample, the shortest, the longest, and two at random."""
    if len(samples) <= NUMBER:
        return list(range(len(samples)))
    chosen = [0, int(samples.lengths.argmin()), int(samples.lengths.argmax())]
    chosen += np.random.default_rng(seed).permutation(len(samples)).tolist()[: 2 * NUMBER]
    return list(dict.fromkeys(chosen))[:NUMBER]


def measure(samples: SampleIndex, seed: int) -> list[dict[str, object]]:
    """Returns origin, tokens and stretches of the chosen samples."""
    found: list[dict[str, object]] = []
    for number in choose(samples, seed):
        try:
            sample = samples[number]
        except RowError as error:
            # A file that changed in this minute; that it is gone is worth a look too.
            found.append({"title": str(error), "stretches": []})
            continue
        counts = f"{len(sample.ids):,} tokens, {sample.num_visual:,} visual, {sample.num_supervised:,} supervised"
        found.append({"title": f"{sample.origin}: {counts}", "stretches": stretches(sample, samples.encoder)})
    return found


def stretches(sample: EncodedSample, encoder: Encoder) -> list[Stretch]:
    """Decodes a sample, cut where its loss weight changes and where it shows something."""
    weights = np.zeros(len(sample.ids), dtype=np.float32)
    for (start, end), weight in zip(sample.spans.tolist(), sample.weights.tolist(), strict=True):
        weights[start:end] = weight
    visual = encoder.text.is_visual(sample.ids)
    # Each temporal patch of a video is a run of its own, as an image is.
    shown = iter(np.repeat(sample.grids, sample.grids[:, 0], axis=0).tolist())
    kinds = ["frames" if isinstance(ref, VideoRef) else "image" for ref in sample.media]
    named = iter(np.repeat(kinds, sample.grids[:, 0]).tolist())
    changes = np.flatnonzero((np.diff(weights) != 0) | (np.diff(visual) != 0)) + 1
    bounds = [0, *changes.tolist(), len(sample.ids)]
    found: list[Stretch] = []
    for start, end in pairwise(bounds):
        if start < end and visual[start]:
            (_, height, width), kind = next(shown), next(named)
            found.append((f"[{kind} {height}x{width} patches = {end - start} tokens]", 0.0))
        elif start < end:
            text = encoder.text.tokenizer.decode(sample.ids[start:end].tolist(), skip_special_tokens=False)
            found.append((_cut(text), float(weights[start])))
    return found


def show(views: list[dict[str, object]]) -> None:
    """Prints the samples: what is learnt in colour on a terminal, else in brackets."""
    console = Console()
    mark = "green" if console.is_terminal else f"in {OPEN}{CLOSE}"
    print(f"train: {len(views)} samples as the model reads them; what is learnt is {mark}")
    for view in views:
        print(f"--- {view['title']}")
        parts: list[Stretch] = view["stretches"]  # type: ignore[assignment]
        if console.is_terminal:
            text = Text.assemble(*((text, "bold green" if weight else "") for text, weight in parts))
            text.rstrip()
            console.print(text)
        else:
            print("".join(marked(text, weight) for text, weight in parts).rstrip("\n"))
    print()


def marked(text: str, weight: float) -> str:
    """Returns a stretch with brackets, and its loss weight where that is not 1."""
    if not weight:
        return text
    return f"{OPEN}{'' if weight == 1 else f'{weight:g}: '}{text}{CLOSE}"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
