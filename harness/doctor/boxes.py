"""In which units a data set's boxes are: Qwen3-VL writes thousandths of the image's width and height.

Looks at the text of rows with images for `<|box_start|>(x,y),(x,y)<|box_end|>`, `"bbox_2d": [...]`, `"point_2d": [...]`
and plain lists of four numbers.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness.data.row import Row
from harness.doctor.wording import counted
from harness.logging.table import show as show_table

PIXELS, FRACTIONS, THOUSANDTHS, SMALL_PIXELS, MIXED = (
    "absolute pixels",
    "fractions of the image",
    "thousandths of the image (Qwen3-VL's)",
    "pixels of small images",
    "mixed",
)

UNNAMED = "list of four numbers"
"""Form of a list that nothing calls a box."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_PAIR = rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_FORMS = {
    "<|box_start|>": re.compile(rf"{_PAIR}\s*,\s*{_PAIR}"),
    "list": re.compile(
        r"(?:(bbox_2d|point_2d)\\?[\"']\s*:\s*)?"
        rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*)?\]"
    ),
}
_TELLING = 50
"""Boxes on small images from which on it is no accident that none reaches over its image's edge."""
_SMALL = 700
"""Sides in pixels up to which thousandths would often reach over the edge, were they pixels."""
_SCALE = 1000


@dataclass(slots=True)
class Boxes:
    """Boxes of rows that are added one by one. Lists without a name may be anything: named boxes go first."""

    named: "_Tally" = field(default_factory=lambda: _Tally())
    unnamed: "_Tally" = field(default_factory=lambda: _Tally())

    def add(self, row: Row, size: tuple[int, int] | None) -> None:
        """Looks for boxes in the text of a row.

        Args:
            row: Any row; without images and videos it has no boxes.
            size: (height, width) of its image, where it has just one.
        """
        if not row.images and not row.videos:
            return
        for message in row.messages:
            for form, numbers in find(message.text):
                tally = self.unnamed if form == UNNAMED else self.named
                tally.add(form, numbers, size, row.origin)

    def plain(self) -> dict[str, Any] | None:
        """Returns what was found for doctor.json, or None."""
        tally = self.named if self.named.units else self.unnamed
        return tally.plain() if tally.units else None


@dataclass(slots=True)
class _Tally:
    forms: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    negative: int = 0
    small: int = 0
    """Boxes up to 1000 in rows with one image, a small one."""
    outside: int = 0
    """Those of them that can be no pixels, since they reach over its edge."""
    first: dict[str, str] = field(default_factory=dict)
    """A box of each unit, with its row."""

    def add(self, form: str, numbers: list[str], size: tuple[int, int] | None, origin: str) -> None:
        values = [float(number) for number in numbers]
        fraction = max(values) <= 1 and any("." in number for number in numbers)
        unit = FRACTIONS if fraction else PIXELS if max(values) > _SCALE else THOUSANDTHS
        self.forms[form] += 1
        self.units[unit] += 1
        self.negative += min(values) < 0
        self.first.setdefault(unit, f"{origin}: [{', '.join(numbers)}]")
        if size is not None and max(size) <= _SMALL and unit is THOUSANDTHS:
            self.small += 1
            self.outside += max(values[0::2]) > size[1] or max(values[1::2]) > size[0]

    def verdict(self) -> str:
        """Returns the units of the boxes as a whole; numbers up to 1000 alone can be pixels or thousandths."""
        if FRACTIONS in self.units and len(self.units) > 1:
            return MIXED
        if PIXELS in self.units:
            return PIXELS
        if FRACTIONS in self.units:
            return FRACTIONS
        return SMALL_PIXELS if self.small >= _TELLING and not self.outside else THOUSANDTHS

    def plain(self) -> dict[str, Any]:
        return {
            "forms": dict(self.forms.most_common()),
            "units": dict(self.units.most_common()),
            "negative": self.negative,
            "verdict": self.verdict(),
            "first": self.first,
        }


def find(text: str) -> list[tuple[str, list[str]]]:
    """Returns the form and the numbers, as they are written, of each box and named point in a text."""
    found = []
    if "(" in text:
        found += [("<|box_start|>", list(match.groups())) for match in _FORMS["<|box_start|>"].finditer(text)]
    if "[" in text:
        for match in _FORMS["list"].finditer(text):
            name, *numbers = match.groups()
            given = [number for number in numbers if number is not None]
            if len(given) == 4 or name == "point_2d":
                found.append((name or UNNAMED, given))
    return found


def show(name: str, boxes: dict[str, Any]) -> None:
    """Prints the forms of boxes and their units."""
    rows = [*boxes["forms"].items(), *boxes["units"].items()]
    show_table(f"{name}: boxes, likely {boxes['verdict']}", ("form or unit", "boxes"), rows)
    print()


def findings(name: str, boxes: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the units."""
    found = []
    shown = "; ".join(f"{unit}: {example}" for unit, example in boxes["first"].items())
    if boxes["verdict"] == MIXED:
        found.append(f"{name}: boxes are in mixed units, and the model can not tell which ({shown})")
    elif boxes["verdict"] != THOUSANDTHS:
        remedy = "Qwen3-VL writes thousandths: give them as objects with <bbox> in the text, or convert them"
        found.append(f"{name}: boxes are likely {boxes['verdict']} ({shown}); {remedy}")
    if boxes["negative"]:
        found.append(f"{name}: {counted(boxes['negative'], 'box', 'boxes')} with a negative number")
    return found
