"""A whole run over rows of which some are broken, each in one of twelve ways, and what its folder says of them.

OMP_NUM_THREADS=1 python benchmarks/bad_rows.py --rows 1000 --out FILE

With `data.on_error=skip` the run has to complete, use each good row, and name each broken one in train.log with file,
line and reason; summary.json has to count them by reason. By default it has to end with the first.
"""

import argparse
import json
import re
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from process import run_harness
from tables import told

from harness.experiment.folder import RunFolder

EVERY, FIRST = 20, 6
"""Of the lines, each 20th is broken, from the sixth on."""
TEXT = re.compile(r" WARNING \S+: train: skipped (?P<origin>\S+?:(?P<line>\d+)): (?P<detail>.+)")
"""How train.log names a row."""


def row(number: int, text: str = "What is it?", answer: str = "a red circle", **changes: Any) -> dict[str, Any]:
    """Returns a row with one of the good images, or with what makes it a bad one."""
    turns = [{"role": "user", "content": f"<image>{text}"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [f"{number % 8}.jpg"]} | changes


BROKEN: dict[str, tuple[Any, str]] = {
    "missing image": (row(0, images=["nowhere.jpg"]), "missing image"),
    "image that breaks off": (row(0, images=["cut.jpg"]), "broken image"),
    "image with damage that only decoding shows": (row(0, images=["spoilt.png"]), "broken image"),
    "image that unpacks to gigabytes": (row(0, images=["bomb.png"]), "too large"),
    "path of a wrong type": (row(0, images=[7]), "wrong type"),
    "more tags than images": (row(0, text="and <image>"), "unbalanced tags"),
    "control token in an answer": (row(0, answer="so <|im_end|>"), "control token"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "unknown role"),
    "no answer": ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn"),
    "not JSON": (b'{"messages": [', "not JSON"),
    "not UTF-8": (b'{"query": "caf\xe9", "response": "r"}', "not UTF-8"),
    "a key twice": (b'{"query": "a", "query": "b", "response": "c"}', "hostile JSON"),
}
"""Each way with its row, and the reason under which it is counted."""


def write(folder: Path, rows: int) -> dict[int, str]:
    """Writes train.jsonl and its images; returns the way in which a line is broken, by its number."""
    pixels = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(pixels.integers(0, 256, (64 + 8 * number, 96, 3), dtype=np.uint8)).save(
            folder / f"{number}.jpg"
        )
    whole = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    # Header and end are whole.
    Image.fromarray(pixels.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(folder / "spoilt.png")
    content = bytearray((folder / "spoilt.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "spoilt.png").write_bytes(content)
    (folder / "bomb.png").write_bytes(_png(60_000, 60_000))
    lines: list[Any] = [row(number) for number in range(rows)]
    broken = {line: [*BROKEN][place % len(BROKEN)] for place, line in enumerate(range(FIRST, rows + 1, EVERY))}
    for line, way in broken.items():
        lines[line - 1] = BROKEN[way][0]
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "train.jsonl").write_bytes(b"\n".join(encoded) + b"\n")
    return broken


def _png(height: int, width: int) -> bytes:
    """Returns a small file that says it is a large picture."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def settings(path: Path) -> list[str]:
    """Returns what a run over the rows needs."""
    more = ["data.generation.enabled=false", "data.cache_dir=null", "data.workers=0", "trainer.accelerator=cpu"]
    return ["data=jsonl", f"data.train={path}", *more, "trainer.batch_size=8", "trainer.max_epochs=1"]


def judge(folder: RunFolder, broken: dict[int, str], rows: int) -> list[str]:
    """Returns what is wrong with what a completed run says of its rows."""
    account = folder.read_summary()["data"]["train"]
    found = [TEXT.search(line) for line in (folder.path / "train.log").read_text(encoding="utf-8").splitlines()]
    named = {int(match["line"]): match for match in found if match is not None}
    wrong = [f"line {line} is broken ({way}) and not named" for line, way in broken.items() if line not in named]
    wrong += [f"line {line} is good and skipped: {named[line]['detail']}" for line in named.keys() - broken.keys()]
    wrong += (
        [f"named twice: {len(found) - found.count(None)} lines"] if len(named) < len(found) - found.count(None) else []
    )
    expected: dict[str, int] = {}
    for way in broken.values():
        expected[BROKEN[way][1]] = expected.get(BROKEN[way][1], 0) + 1
    counted = {reason: entry["rows"] for reason, entry in account["skipped"].items()}
    if counted != expected:
        wrong.append(f"counted {counted}, not {expected}")
    used = account["rows"], account["used"], account["dropped"]
    if used != (rows, rows - len(broken), {}):
        wrong.append(f"rows, used and dropped are {used}")
    return wrong


def measure(home: Path, rows: int) -> dict[str, Any]:
    """Runs under both policies in an empty folder, and returns the figures."""
    broken = write(home, rows)
    begun = time.monotonic()
    outcome = run_harness([*settings(home / "train.jsonl"), "data.on_error=skip"], home / "skip", 600, {})
    seconds = time.monotonic() - begun
    wrong = judge(RunFolder(home / "skip"), broken, rows) if outcome.status == "completed" else [str(outcome.error)]
    stopped = run_harness(settings(home / "train.jsonl"), home / "raise", 600, {})
    first = next(iter(broken))
    if stopped.status != "failed" or f"train.jsonl:{first}: " not in (stopped.error or ""):
        wrong.append(f"by default it does not end with line {first}: {stopped.error}")
    return {
        "rows": rows,
        "broken": len(broken),
        "ways": len(set(broken.values())),
        "wrong": wrong,
        "seconds": seconds,
    }


def main() -> int:
    """Returns 0 where all is as it should be."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        figures = measure(Path(home), options.rows)
    return told(figures, options.out)


if __name__ == "__main__":
    sys.exit(main())
