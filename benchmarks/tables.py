"""What the scripts that write docs/ share: Markdown tables, and their places between markers of a page."""

import json
import re
import sys
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


def keep(made: dict[str, Any], results: Path, kind: str) -> None:
    """Puts an entry into the results of its card, in the place of one with its key.

    Args:
        made: With `key` and `device`; one that failed before it knew its card is not kept.
        results: The folder of results.
        kind: Begins the file's name.
    """
    if made["device"] is None:
        return
    path = results / f"{kind}_{card(made['device']).lower()}.json"
    entries = {item["key"]: item for item in read_json(path, [])} | {made["key"]: made}
    path.write_text(json.dumps(list(entries.values()), indent=1) + "\n", encoding="utf-8")


def told(figures: Mapping[str, Any], out: Path | None) -> int:
    """Prints a script's figures, and keeps them in a file where one is named; returns 0 where nothing is `wrong`."""
    print(json.dumps(figures, indent=1))
    if out:
        out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return int(bool(figures["wrong"]))


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file, none where there is no file."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def split_arguments() -> tuple[list[str], list[str]]:
    """Returns what stands before and what behind `--` on the command line."""
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return sys.argv[1:place], sys.argv[place + 1 :]
