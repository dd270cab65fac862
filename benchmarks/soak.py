"""Trains the tiny model for minutes with a checkpoint, a validation and a log every few steps, and watches the process.

OMP_NUM_THREADS=1 python benchmarks/soak.py --minutes 10 --out soak.json

Memory, open files and threads come from /proc, every few seconds; a leak shows as a slope. What leaks in a run leaks by
the step, the save and the validation, so these are counted, and what they would be in ten hours of a real run: on a 4B
model with images, at 3 s a step, a validation and a checkpoint each 250 steps.
"""

import argparse
import json
import logging
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEP_S, EVERY = 3.0, 250
"""Of the real run."""
SETTINGS = (
    *("data=jsonl", "data.workers=0", "tuner.rank=2", "tuner.target_modules=[down_proj]"),
    *("trainer.batch_size=1", "trainer.val_batch_size=2", "trainer.val_at_start=false", "trainer.log_every_steps=5"),
    *("trainer.keep_checkpoints=2", "trainer.accelerator=cpu", "model.dtype=float32"),
)
SAVE_EVERY = 10
"""Steps between validations and checkpoints of the soak."""
ROOM = {"rss_mib": 0.01, "files": 0.0, "threads": 0.0}
"""Growth from the first tenth to the last that counts as none, as a share; half a MiB of memory is none either."""


def sample(pid: int) -> dict[str, float]:
    """Returns what a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def train(home: Path) -> None:
    """Trains in this process until a signal ends it."""
    from harness import config, registry
    from harness.compose import compose_config
    from harness.experiment import trial

    os.nice(10)
    registry.load()
    for name, number in (("train", 8), ("val", 2)):
        rows = [json.dumps({"query": f"what is {i}?", "response": f"a lot {i}"}) for i in range(number)]
        (home / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    rows = [f"data.train={home / 'train.jsonl'}", f"data.val={home / 'val.jsonl'}", "data.cache_dir=null"]
    often = [f"trainer.{key}_every_steps={SAVE_EVERY}" for key in ("val", "save")]
    folder = home / "run"
    folder.mkdir()
    config.save(compose_config([*SETTINGS, *rows, *often, "trainer.max_steps=10000000"]), folder / "config.yaml")
    os.dup2(os.open(home / "console.log", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    logging.getLogger().setLevel(logging.WARNING)
    sys.exit(trial.main([str(folder)]))


def soak(minutes: float, interval_s: float = 2.0, skip: float = 0.1) -> dict[str, Any]:
    """Trains in a process of its own and samples it.

    Args:
        minutes: Of training.
        interval_s: Seconds between samples.
        skip: Share of the samples left out at the beginning: imports, caches and buffers that are filled once.
    """
    with tempfile.TemporaryDirectory() as home:
        process = multiprocessing.get_context("spawn").Process(target=train, args=(Path(home),))
        process.start()
        samples: list[dict[str, float]] = []
        metrics = Path(home) / "run" / "metrics.jsonl"
        while process.is_alive() and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.1)
        begun = time.monotonic()
        while process.is_alive() and time.monotonic() < begun + 60 * minutes:
            samples.append({"at_s": time.monotonic() - begun, **sample(process.pid or 0)})
            time.sleep(interval_s)
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(120)
        console = (Path(home) / "console.log").read_text(errors="replace")[-2000:]
        assert process.exitcode == 143, f"{process.exitcode}: {console}"
        lines = metrics.read_text(encoding="utf-8").splitlines()
        summary = json.loads((Path(home) / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "preempted", summary["error"]
    steps = json.loads(lines[-1])["step"]
    found = {name: trend([(item["at_s"], item[name]) for item in samples], skip) for name in ROOM}
    return {
        "minutes": minutes,
        "samples": len(samples),
        "steps": steps,
        "validations": sum('"val/loss"' in line for line in lines),
        "saves_due": steps // SAVE_EVERY,
        "saves": sum('"perf/save_write_s"' in line for line in lines),
        "ten_hours": {"steps": int(36000 / STEP_S), "saves": int(36000 / STEP_S / EVERY)},
        **found,
        "ok": all(is_flat(name, found[name]) for name in ROOM),
    }


def trend(points: list[tuple[float, float]], skip: float) -> dict[str, float]:
    """Returns the slope an hour, the medians of the first and the last tenth behind what is skipped, and the peak."""
    kept = points[int(len(points) * skip) :]
    tenth = max(1, len(kept) // 10)
    values = [value for _, value in kept]
    slope = statistics.linear_regression(*zip(*kept, strict=True)).slope if len(kept) > 1 else 0.0
    return {
        "slope_per_hour": 3600 * slope,
        "first": statistics.median(values[:tenth]),
        "last": statistics.median(values[-tenth:]),
        "peak": max(values),
    }


def is_flat(name: str, found: dict[str, float]) -> bool:
    """Whether the last tenth holds no more than the first, but for `ROOM`."""
    allowed = max(ROOM[name] * found["first"], 0.5 if name == "rss_mib" else 0.0)
    return found["last"] - found["first"] <= allowed


def main() -> int:
    """Returns 0 where nothing grows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    options = parser.parse_args()
    figures = soak(options.minutes)
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return int(not figures["ok"])


if __name__ == "__main__":
    sys.exit(main())
