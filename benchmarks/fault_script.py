"""The command line of a script that measures faults."""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faults

Measure = Callable[[faults.Bench, int, random.Random], dict[str, Any]]


def run(make_bench: Callable[[Path], faults.Bench], measures: Mapping[str, Measure]) -> int:
    """Measures each fault as often as its option says, and keeps what was found; returns 0 where every try is right.

    Args:
        make_bench: Returns the runs in a folder.
        measures: By option; each takes the runs, the number of the try and what draws.
    """
    parser = argparse.ArgumentParser()
    for name in measures:
        parser.add_argument(f"--{name}", type=int, default=0, help="tries")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="file for what was found, JSON")
    options = vars(parser.parse_args())
    found: list[dict[str, Any]] = []
    draw = random.Random(options["seed"])
    with tempfile.TemporaryDirectory() as home:
        bench = make_bench(Path(home))
        for name, measure in measures.items():
            for number in range(options[name]):
                found.append(measure(bench, number, draw))
                print(f"{name} {number + 1} of {options[name]}: {found[-1]}", flush=True)
                wrong = [item for item in found if not item["ok"]]
                options["out"].write_text(json.dumps({"found": found, "wrong": wrong}), encoding="utf-8")
    return int(any(not item["ok"] for item in found))
