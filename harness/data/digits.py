"""1,797 real handwritten digits that scikit-learn ships (Alpaydin and Kaynak, 1998): trains without a download.

The 8 x 8 scans become 64 x 64 pictures, ink dark on light. The split never depends on the run's seed, so accuracies of
different runs compare: 1,437 rows train, 360 validate, stratified by digit.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.config import DataConfig
from harness.errors import reject
from harness.registry import register

if TYPE_CHECKING:
    import numpy as np

    from harness.data.row import Row, Sources

NUM_TRAIN, NUM_VAL = 1437, 360
QUESTION = "What digit is written here?"
_PIXELS = 64


@dataclass(kw_only=True, slots=True)
class DigitsConfig(DataConfig):
    """Handwritten digits: one picture, one question, one digit as the answer."""

    name: str = "digits"
    train_rows: int | None = None
    """Train on the first this many of the 1,437 rows, for quick runs; null takes them all."""
    held_out: int | None = None
    """Validate on the last this many of those rows, which then do not train, and leave the 360 alone: for choosing."""

    def __post_init__(self) -> None:
        # Zero-argument super() fails in a slots dataclass: the decorator makes a second class of the same name.
        DataConfig.__post_init__(self)
        if self.train_rows is not None and not 1 <= self.train_rows <= NUM_TRAIN:
            raise reject("data.train_rows", self.train_rows, f"give 1 to {NUM_TRAIN}, or null for all")
        rows = self.train_rows or NUM_TRAIN
        if self.held_out is not None and not 1 <= self.held_out < rows:
            raise reject("data.held_out", self.held_out, f"give 1 to {rows - 1}, or null for none")


@register("data", DigitsConfig)
def build(config: DigitsConfig) -> "Sources":
    """Draws the pictures into memory and splits them."""
    import hashlib

    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from harness.data.row import ListRows, Sources

    data = load_digits()
    train, val = train_test_split(np.arange(len(data.target)), test_size=NUM_VAL, random_state=0, stratify=data.target)
    train = train[: config.train_rows]
    if config.held_out is not None:
        train, val = train[: -config.held_out], train[-config.held_out :]
    content = hashlib.sha256(QUESTION.encode())
    for part in (data.images, data.target, train, val):
        content.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    rows = [[_row(data.images[i], int(data.target[i]), int(i)) for i in split] for split in (train, val)]
    digest = content.hexdigest()
    return Sources(train=ListRows(rows[0], digest), val=ListRows(rows[1], f"{digest} val"), fingerprint=digest)


def _row(ink: "np.ndarray", digit: int, index: int) -> "Row":
    """Makes a row of an (8, 8) scan whose ink goes from 0 to 16."""
    import numpy as np
    from PIL import Image

    from harness.data.media.image import ImageRef
    from harness.data.row import Media, Message, Row

    origin = f"digits:{index}"
    grey = Image.fromarray(np.rint(255 - ink * 255 / 16).astype(np.uint8))
    picture = grey.resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC).convert("RGB")
    messages = (Message("user", (Media.image, QUESTION)), Message("assistant", (str(digit),)))
    return Row(messages=messages, images=(ImageRef(picture, origin),), origin=origin)
