"""Whole runs in which losses are no numbers for a while, or from some step on."""

import json
import math

import pytest
import torch

from harness.logging.metrics import read
from harness.trainer import module as modules
from harness.trainer.kept_batch import read as read_batch

pytestmark = pytest.mark.slow

SKIP = ("trainer.on_nonfinite=skip", "trainer.max_nonfinite=2", "trainer.max_steps=8", "trainer.log_every_steps=3")
ACCUMULATE = 2
FEW = ("data.held_out=2", "data.generation.enabled=false")


@pytest.fixture
def poison(monkeypatch):
    """Makes no numbers of the losses of steps; keeps the token ids of what was trained on, by step."""
    real = modules.token_losses
    seen: list[torch.Tensor] = []

    def inject(*steps):
        seen.clear()

        def losses(base, batch, *args):
            seen.append(batch.input_ids)
            summed, each = real(base, batch, *args)
            return (summed * math.nan if math.ceil(len(seen) / ACCUMULATE) in steps else summed), each

        monkeypatch.setattr(modules, "token_losses", losses)
        return seen

    return inject


@pytest.fixture
def text_rows(tmp_path):
    turns = [
        [{"role": "user", "content": f"{n} and {n}?"}, {"role": "assistant", "content": f"{2 * n}"}] for n in range(64)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return ["data=jsonl", f"data.train={path}"]


def test_steps_that_are_skipped_are_counted_also_over_a_resume(run, poison):
    common = [*SKIP, *FEW, f"trainer.accumulate={ACCUMULATE}", "trainer.save_every_steps=4"]
    poison(2, 3)
    folder, code = run("a", *common, "trainer.max_nonfinite=3", "trainer.max_steps=5")
    assert code == 0 and folder.read_summary()["nonfinite_steps"] == 2
    rows = {row["step"]: row for row in read(folder.metrics)}
    assert math.isnan(rows[2]["train/loss"]) and math.isfinite(rows[5]["train/loss"])
    assert [rows[step].get("train/nonfinite_steps") for step in (1, 2, 3, 4)] == [None, 1, 2, None]
    poison(2)
    _, code = run("a", *common, "trainer.max_nonfinite=3", "trainer.resume=auto")
    assert code == 0 and folder.read_summary()["nonfinite_steps"] == 3
    assert "its rows: digits:" in (folder.path / "train.log").read_text()


@pytest.mark.parametrize("choice", ["digits", "text", "stream", "packed"])
def test_the_batch_that_ended_a_run_is_kept(run, poison, choice, text_rows):
    more = {
        "digits": [*FEW],
        "text": text_rows,
        "stream": [*text_rows, "data.streaming=true"],
        "packed": [*FEW, "data.packing=true", "data.packing_length=128"],
    }[choice]
    seen = poison(2, 4, 5, 6)
    folder, code = run(choice, *SKIP, f"trainer.accumulate={ACCUMULATE}", "trainer.batch_size=2", *more)
    summary, log = folder.read_summary(), (folder.path / "train.log").read_text()
    assert (code, summary["status"]) == (1, "diverged")
    assert summary["error"].startswith("DivergedError: step 5: loss nan, gradient norm nan, 2 steps in a row")
    (path,) = (folder.path / "nonfinite").iterdir()
    assert path.name == "step_5_rank_0.safetensors" and f"harness.trainer.kept_batch {path} shows it" in log
    kept = [batch.input_ids for batch in read_batch(path)]
    assert len(kept) == ACCUMULATE
    for one, other in zip(kept, seen[4 * ACCUMULATE :], strict=False):
        assert torch.equal(one, other)


def test_a_run_that_does_not_skip_ends_at_the_first_and_may_go_on_skipping(run, poison):
    common = [*FEW, "trainer.max_steps=4", "trainer.save_every_steps=1", f"trainer.accumulate={ACCUMULATE}"]
    poison(3)
    folder, code = run("a", *common)
    assert code == 1 and folder.read_summary()["error"] == "DivergedError: step 3: loss nan, gradient norm nan"
    assert (folder.path / "nonfinite" / "step_3_rank_0.safetensors").is_file()
    poison(1)
    _, code = run("a", *common, "trainer.on_nonfinite=skip", "trainer.resume=auto")
    assert code == 0 and folder.read_summary()["nonfinite_steps"] == 1
