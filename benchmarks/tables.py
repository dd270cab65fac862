"""What the scripts that write docs/ share: Markdown tables, and their places between markers of a page."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Renders a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Writes each part between its markers, `<!-- name -->` and `<!-- end -->`, in place."""
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda match, new=content: match[1] + new + match[2], text, flags=re.S)
        assert found == 1, f"{page} has no place for {name}"
    page.write_text(text, encoding="utf-8")


def read_json(path: Path, default: Any = None) -> Any:
    """Returns a file's content, or the default where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def card(device: str) -> str:
    """Returns the model of a GPU out of its full name: figures of different cards are not to be compared."""
    return device.removeprefix("NVIDIA ").split(" ")[0]


def failure(entry: Mapping[str, Any]) -> str:
    """Returns in a cell's words why a run did not complete."""
    return f"{entry['status']}: {str(entry['error']).splitlines()[0][:80]}".replace("|", "/")
