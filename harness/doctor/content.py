"""What the rows of a split hold: turns, images, system messages, tools, channels, fields that training ignores."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.data.row import Row
from harness.doctor import spread
from harness.doctor.wording import counted
from harness.logging.table import show as show_table

_SHOWN = 20
"""Channels and numbers of images that are listed."""


@dataclass(slots=True)
class Content:
    """Counts over rows that are added one by one."""

    rows: int = 0
    turns: list[int] = field(default_factory=list)
    channels: Counter[str] = field(default_factory=Counter)
    num_images: Counter[int] = field(default_factory=Counter)
    num_videos: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        """Counts one row."""
        self.rows += 1
        self.turns.append(sum(message.role != "system" for message in row.messages))
        if row.channel is not None:
            self.channels[row.channel] += 1
        self.num_images[len(row.images)] += 1
        self.num_videos[len(row.videos)] += 1
        holds = {
            "system message": any(message.role == "system" for message in row.messages),
            "tools": bool(row.tools),
            "tool calls": any(message.role == "tool_call" for message in row.messages),
            "pre-training text": row.plain,
            "preference (rejected answer)": row.rejected is not None,
            "KTO label": row.label is not None,
            "loss weights of its own": any(message.weight is not None for message in row.messages),
            "pixel bounds of its own": row.min_pixels is not None or row.max_pixels is not None,
        }
        self.kinds.update(name for name, has in holds.items() if has)

    def plain(self) -> dict[str, Any]:
        """Returns all of it for doctor.json."""
        turns = np.array(self.turns, dtype=np.int64)
        return {
            "rows": self.rows,
            "turns": spread.measure(turns),
            "channels": dict(self.channels.most_common()),
            "images_per_row": dict(sorted(self.num_images.items())),
            "videos_per_row": dict(sorted(self.num_videos.items())),
            "kinds": dict(self.kinds.most_common()),
        }


def show(name: str, content: dict[str, Any]) -> None:
    """Prints turns, and how many rows hold what; what no row has is left out."""
    spread.show("", f"{name}: per row", {"turns": content["turns"]})
    rows = [*content["kinds"].items()]
    rows += [(f"channel {channel}", count) for channel, count in _most(content["channels"])]
    for what in ("image", "video"):
        per_row = content[f"{what}s_per_row"]
        if set(per_row) - {0}:
            rows += [(f"{number} {what}{'' if number == 1 else 's'}", count) for number, count in _most(per_row)]
    if rows:
        show_table(f"{name}: rows with", ("what", "rows"), rows)
        print()


def findings(name: str, content: dict[str, Any]) -> list[str]:
    """Returns what is ignored by supervised fine-tuning."""
    ignored = [kind for kind in ("preference (rejected answer)", "KTO label") if kind in content["kinds"]]
    return [
        f"{name}: {counted(content['kinds'][kind], 'row')} with a {kind}, which supervised fine-tuning ignores"
        for kind in ignored
    ]


def _most(counts: dict[Any, int]) -> list[tuple[Any, int]]:
    listed = sorted(counts.items(), key=lambda item: -item[1])[:_SHOWN]
    rest = sum(counts.values()) - sum(count for _, count in listed)
    return [*listed, *([("other", rest)] if rest else [])]
