"""Feeds broken and hostile files to what reads them, in this process, and looks at what comes of each.

OMP_NUM_THREADS=1 python benchmarks/fuzz.py --cases 10000 --seed 0
OMP_NUM_THREADS=1 python benchmarks/fuzz.py --replay rows:0:123

A case is right where it ends within its time in a result that its family's own, independent look at the files bears
out, or in the one error for users with a message that names the file. A case follows from family, seed and number.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fuzz_checkpoints
import fuzz_configs
import fuzz_images
import fuzz_rows
import fuzz_tables

ROOT = Path(__file__).parent.parent
LIMIT_S = 20.0
"""Longest case; most take milliseconds, a row of 64 MiB a second."""
SHARES = {"rows": 35, "images": 20, "tables": 25, "configs": 8, "checkpoints": 12}
"""Cases of each family in a hundred."""
FAMILIES: dict[str, Callable[[Path], Callable[[Path, random.Random, dict[str, str]], None]]] = {
    "rows": fuzz_rows.rows,
    "images": fuzz_images.images,
    "tables": fuzz_tables.tables,
    "configs": fuzz_configs.configs,
    "checkpoints": fuzz_checkpoints.checkpoints,
}
"""Each makes what its cases share in a folder, and returns what runs a case: with an empty folder, what draws, and a
place for the name of what was done to the files. It raises AssertionError where something came out wrong."""


class TooLongError(BaseException):
    """A case is over its time: no handler of errors on the way may take it."""


class Fuzzer:
    """Runs cases one after the other."""

    def __init__(self, home: Path) -> None:
        """Args: home: An empty folder."""
        self._home = home
        self._run: dict[str, Callable[[Path, random.Random, dict[str, str]], None]] = {}

    def case(self, family: str, seed: int, number: int) -> dict[str, Any]:
        """Runs a case; returns its name, what was done to the files, and what was wrong, None for nothing."""
        if family not in self._run:
            shared = self._home / family
            shared.mkdir()
            self._run[family] = FAMILIES[family](shared)
        folder, note, wrong = self._home / "case", {"kind": "?"}, None
        folder.mkdir()
        begun = time.monotonic()
        try:
            with _time_limit(), _silence():
                self._run[family](folder, random.Random(f"{family}:{seed}:{number}"), note)
        except TooLongError as error:
            wrong = f"over {LIMIT_S:.0f} s, in {_place(error)}"
        except AssertionError as error:
            wrong = str(error) or traceback.format_exc()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({_place(error)})"
        seconds = time.monotonic() - begun
        if seconds > LIMIT_S and wrong is None:
            wrong = f"took {seconds:.1f} s"
        shutil.rmtree(folder)
        return {"case": f"{family}:{seed}:{number}", **note, "wrong": wrong, "seconds": seconds}


def _place(error: BaseException) -> str:
    """Returns the innermost line of this project that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{ROOT}/harness/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raises TooLongError in time; where nothing can be raised, since C code does not return, ends the process."""

    def too_long(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    faulthandler.dump_traceback_later(5 * LIMIT_S, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _silence() -> Iterator[None]:
    """Lets no log line and no warning through: cases make many of both."""
    logging.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def order(cases: int) -> Iterator[tuple[str, int]]:
    """Yields family and number of so many cases, the families mixed after their shares."""
    mixed = sorted((number / share, name) for name, share in SHARES.items() for number in range(share))
    counted = dict.fromkeys(SHARES, 0)
    for place in range(cases):
        name = mixed[place % len(mixed)][1]
        yield name, counted[name]
        counted[name] += 1


def fuzz(cases: int, seed: int) -> dict[str, Any]:
    """Runs cases, prints those that go wrong with what replays them, and returns the figures."""
    counts: dict[str, dict[str, int]] = {name: {} for name in SHARES}
    wrong: list[dict[str, Any]] = []
    begun, longest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as home:
        fuzzer = Fuzzer(Path(home))
        for place, (family, number) in enumerate(order(cases), 1):
            found = fuzzer.case(family, seed, number)
            counts[family][found["kind"]] = counts[family].get(found["kind"], 0) + 1
            longest = max(longest, found["seconds"])
            if found["wrong"] is not None:
                wrong.append(found)
                print(f"{found['case']} ({found['kind']}): {found['wrong']}", flush=True)
            if place % 500 == 0:
                print(f"{place} of {cases}, {len(wrong)} wrong, {time.monotonic() - begun:.0f} s", flush=True)
    return {
        "seed": seed,
        "cases": cases,
        "wrong": wrong,
        "counts": counts,
        "seconds": time.monotonic() - begun,
        "longest_s": longest,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> int:
    """Returns 0 where every case is right."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", help="family:seed:number of the one case to run")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    if options.replay:
        family, seed, number = options.replay.split(":")
        with tempfile.TemporaryDirectory() as home:
            found = Fuzzer(Path(home)).case(family, int(seed), int(number))
        print(json.dumps(found, indent=1))
        return int(found["wrong"] is not None)
    figures = fuzz(options.cases, options.seed)
    print({key: value for key, value in figures.items() if key != "wrong"})
    if options.out:
        options.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
