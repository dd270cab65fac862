"""How much of a GPU's memory a process can use, for cards that are not in this machine."""

import re

from harness.errors import UserError

_CARDS = {
    "b200": 178.0,
    "h200": 139.0,
    "h100": 79.0,
    "h100-94": 93.0,
    "a100": 79.0,
    "a100-40": 39.0,
    "rtx6000-blackwell": 94.5,
    "rtx5090": 31.0,
    "l40s": 44.0,
    "a6000": 47.0,
    "a10": 22.0,
    "l4": 22.0,
    "rtx4090": 23.5,
    "rtx3090": 23.5,
    "t4": 14.5,
}
"""GiB: what is sold, less what the driver keeps (ECC where it takes memory) and 0.5 GiB of context."""


def usable_gib(name: str) -> float:
    """Returns what a process can allocate on a card.

    Args:
        name: As in the table, capitals and spaces aside, or GiB as a number.

    Raises:
        UserError: The card is not in the table.
    """
    if re.fullmatch(r"\d+(\.\d+)?", name):
        return float(name)
    key = re.sub(r"[ _]", "", name.lower().removeprefix("nvidia"))
    if key not in _CARDS:
        raise UserError(f"--card {name}: known: {', '.join(_CARDS)}; or its GiB as a number")
    return _CARDS[key]
