"""Measures the checkpoints of LoRA runs against the least that they can take: weights that train and Adam's moments.

    OMP_NUM_THREADS=1 python benchmarks/adapter_size.py --out FILE

Rank 64, so that tensors and not their names are most of it: on the tiny model 417,792 values train of 1.4 million.
ZeRO is left out where DeepSpeed is not installed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import rank_faults

RANK = ("tuner.rank=64", "trainer.max_steps=2", "trainer.save_every_steps=2", "trainer.val_every_steps=2")
BYTES = 12
"""Of a value that trains: itself and two moments, in float32."""
LIMIT = 1.2


def measure(bench: rank_faults.faults.Bench, mode: str) -> dict[str, Any]:
    """Returns how large the checkpoint of a run is."""
    folder, _ = bench.whole(mode)
    size = sum(path.stat().st_size for path in (folder.checkpoints / "last").resolve().rglob("*") if path.is_file())
    trained = folder.read_summary()["trainable_parameters"]
    return {"mode": mode, "trained": trained, "bytes": size, "ratio": size / (BYTES * trained)}


def main() -> int:
    """Returns 0 where one process keeps to the limit; how DeepSpeed writes is its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="file for the figures, JSON")
    out = parser.parse_args().out
    modes = {"one process": RANK} | {name: (*rank_faults.MODES[name], *RANK) for name in rank_faults.STRATEGIES
                                     if name in rank_faults.MODES}  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        bench = rank_faults.make_bench(Path(home), modes)
        found = [measure(bench, mode) for mode in modes]
    print(json.dumps(found, indent=1))
    ok = found[0]["ratio"] <= LIMIT
    out.write_text(json.dumps({"found": found, "ok": ok}), encoding="utf-8")
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
