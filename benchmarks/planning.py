"""Measures planning: tokenising rows, reading image headers, working out lengths and packs, first and second time.

    python benchmarks/planning.py --images 100000 --text 0 --out outputs/planning
    python benchmarks/planning.py --images 0 --text 1000000 --out outputs/planning

Makes the rows where they are not there yet: captions of 20 to 200 words on small JPEGs of many sizes, or questions and
answers of 5 to 60 words. Prints the time from the first look at the files to the packs, and the peak memory of all
processes together (proportional set size: pages that processes share count once).
"""

import argparse
import io
import json
import random
import threading
import time
from pathlib import Path

import psutil
from PIL import Image

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.data.assemble import data_module
from harness.model.processor import load_processor

WORDS = [
    "red",
    "blue",
    "green",
    "large",
    "small",
    "round",
    "square",
    "dog",
    "cat",
    "tree",
    "house",
    "sky",
    "left",
    "right",
    "above",
    "below",
    "near",
    "with",
    "and",
    "the",
    "a",
]


def write_captions(folder: Path, rows: int) -> Path:
    """Writes JPEG files of 200 sizes and a row for each."""
    path = folder / f"captions_{rows}.jsonl"
    if path.is_file():
        return path
    generator = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pool = []
    for _ in range(200):
        buffer = io.BytesIO()
        Image.new("RGB", (generator.randint(200, 1200), generator.randint(200, 1200)), "teal").save(
            buffer, "JPEG", quality=10
        )
        pool.append(buffer.getvalue())
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            (folder / f"images/{row}.jpg").write_bytes(generator.choice(pool))
            answer = " ".join(generator.choices(WORDS, k=generator.randint(20, 200)))
            turns = [{"role": "user", "content": "<image>Describe."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns, "images": [f"images/{row}.jpg"]}) + "\n")
    return path


def write_text(folder: Path, rows: int) -> Path:
    """Writes rows of one question and one answer."""
    path = folder / f"text_{rows}.jsonl"
    if path.is_file():
        return path
    generator = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            question, answer = (" ".join(generator.choices(WORDS, k=generator.randint(5, 60))) for _ in range(2))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


class PeakMemory:
    """Watches this process and its children."""

    def __enter__(self) -> "PeakMemory":
        """Starts to watch."""
        self.gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.gib = max(self.gib, total / 2**30)


def plan(train: Path, cache: Path) -> tuple[float, float, int]:
    """Plans packs of 8,192 tokens; returns seconds, peak GiB and the number of samples."""
    config = to_run_config(
        compose_config(
            [
                "data=files",
                f"data.train={train}",
                f"data.cache_dir={cache}",
                "data.packing=true",
                "data.packing_length=8192",
                "data.image.max_tokens=16384",
            ]
        )
    )
    processor = load_processor(config.model)
    with PeakMemory() as memory:
        begun = time.perf_counter()
        data = data_module(config, processor)
        data.prepare()
        seconds = time.perf_counter() - begun
    return seconds, memory.gib, data.accounts["train"].samples


def main() -> None:
    """Prints a row for each file and start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--text", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    registry.load()
    files = [write_captions(arguments.out, arguments.images)] if arguments.images else []
    files += [write_text(arguments.out, arguments.text)] if arguments.text else []
    for path in files:
        cache = arguments.out / f"cache_{time.time_ns()}"
        for start in ("first", "second"):
            seconds, gib, samples = plan(path, cache)
            print(f"{path.name}: {start} start {seconds:6.1f} s, {samples:,} samples, peak {gib:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
