"""Run folders as a sweep leaves them, written in no time."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

ROWS = 40
"""Validation rows of a made trial."""


def write_trial(
    folder: Path,
    *,
    rank: int = 8,
    lr: float = 1e-3,
    seed: int = 1,
    loss: float | None = None,
    status: str = "completed",
    steps: int = 20,
    error: str | None = None,
    trial_json: bool = True,
    config: dict | None = None,
    overrides: tuple[str, ...] = (),
    **status_fields: object,
) -> Path:
    """Writes a run folder whose validation loss is the one given, and noise of its rows."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(rank * 1000 + seed)
    overrides = (f"tuner.rank={rank}", f"optim.lr={lr}", f"seed={seed}", *overrides)
    whole = {
        "tuner": {"name": "lora", "rank": rank},
        "optim": {"name": "adamw", "lr": lr},
        "data": {"workers": 2},
        "trainer": {"max_steps": 20, "monitor": "val/loss"},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | (config or {})))
    if trial_json:
        told = {
            "identity": folder.name,
            "number": 0,
            "overrides": list(overrides),
            "command": f"python -m harness {overrides[0]}",
        }
        (folder / "trial.json").write_text(json.dumps(told))
    else:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if status == "waiting":
        return folder
    final = (1.0 + 0.1 * rng.normal()) if loss is None else loss
    each = np.random.default_rng(0).normal(size=ROWS) * 0.2 + 0.02 * rng.normal(size=ROWS)
    each += final - each.mean()
    with open(folder / "metrics.jsonl", "w") as file:
        file.write(json.dumps({"step": 0, "val/exact_match": 0.1, "val/loss": 2.0}) + "\n")
        for step in range(1, steps + 1):
            row = {"step": step, "perf/tokens_per_s": 1000.0, "train/grad_norm": 1.0, "train/loss": final + 1 / step}
            if step in (steps, steps // 2):
                row |= {"val/exact_match": 0.5, "val/loss": final}
            file.write(json.dumps(row) + "\n")
    state = {"state": status, "attempt": 1, "pid": 1, "host": "elsewhere", "last_step": steps, "exit_reason": error}
    (folder / "status.json").write_text(json.dumps(state | status_fields))
    if status in ("running", "killed"):
        return folder
    summary = {"status": status, "seed": seed, "steps": steps, "wall_time_s": 5.0 + rank, "error": error}
    if status == "completed":
        summary |= {
            "val": {"val/loss": final, "val/exact_match": 0.5},
            "best": {"metric": "val/loss", "value": final, "step": steps},
            "tokens": 5000,
            "trainable_parameters": 1000 * rank,
            "total_parameters": 100_000,
            "step_time_s": 0.1,
            "tokens_per_s": 1000.0,
            "model_tflop_per_s": 0.5,
            "peak_allocated_gib": 2.0 + rank / 10,
        }
        items = {"step": steps, "origin": [f"val.jsonl:{n}" for n in range(ROWS)], "loss": (each * 2).tolist()}
        items |= {"tokens": [2] * ROWS, "exact_match": (each < final).astype(float).tolist()}
        (folder / "items.json").write_text(json.dumps(items))
    (folder / "summary.json").write_text(json.dumps(summary))
    environment = {"packages": {"torch": "2.13.0"}, "python": "3.11", "git": {"commit": "abc", "dirty": False}}
    environment |= {"device": {"type": "cpu", "name": "x86_64"}, "data_fingerprint": "f00d"}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture(scope="session")
def make_trial():
    return write_trial


@pytest.fixture
def sweep(tmp_path):
    """Three ranks, three learning rates and three seeds: rank 16 at 1e-3 is the best; one diverged, one failed."""
    folder = tmp_path / "study"
    number = 0
    rng = np.random.default_rng(11)
    for rank in (4, 8, 16):
        for lr in (1e-4, 1e-3, 1e-2):
            for seed in (1, 2, 3):
                loss = 1.0 + 0.3 * abs(np.log10(lr) + 3) - 0.01 * rank + 0.01 * rng.normal()
                how: dict = {"status": "completed"}
                if (rank, lr, seed) == (4, 1e-2, 3):
                    how = {"status": "diverged", "error": "DivergedError: step 7: loss nan <b>", "steps": 7}
                if (rank, lr, seed) == (8, 1e-2, 3):
                    how = {"status": "failed", "error": "UserError: data.train=x.jsonl: no such file", "steps": 0}
                write_trial(folder / f"{number}_rank-{rank}_seed-{seed}", rank=rank, lr=lr, seed=seed, loss=loss, **how)
                number += 1
    return folder
