"""Whole runs in this process: what a run folder holds, and that a resumed run is the run it would have been."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from harness.logging.metrics import read
from harness.model.weights import Weights
from harness.optim.schedule import ScheduleConfig, multiplier
from harness.trainer.checkpoint import FILE
from harness.trainer.evaluate import Evaluator
from harness.trainer.module import TrainingModule

PACKED = ("data.packing=true", "data.packing_length=64")


def losses(folder):
    return {row["step"]: row["train/loss"] for row in read(folder.metrics) if row["step"] > 0}


def weights(folder, step):
    name = step if isinstance(step, str) else f"step_{step}"
    return torch.load(folder.checkpoints / name / FILE, weights_only=True)["state_dict"]


def test_a_run_keeps_the_contracts(run, capsys):
    folder, code = run("a", "trainer.max_epochs=1", "optim.lr=1e-3")
    assert code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {folder.path}"
    names = {path.name for path in folder.path.iterdir()}
    files = "config.yaml environment.json status.json run.lock metrics.jsonl summary.json train.log predictions.jsonl"
    assert set(files.split()) | {"checkpoints", "adapter", "curves.png"} <= names
    summary = json.loads(folder.summary.read_text())
    assert (summary["status"], summary["steps"], summary["seed"], summary["error"]) == ("completed", 4, 42, None)
    assert summary["tokens_per_s"] > 0 and summary["trainable_parameters"] < summary["total_parameters"]
    assert set(summary["val"]) == set(summary["baseline"]) == {"val/loss", "val/exact_match"}
    assert folder.read_status()["state"] == "completed" and folder.read_status()["last_step"] == 4
    rows = read(folder.metrics)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    keys = {"train/loss", "train/grad_norm", "train/lr/llm", "val/loss", "perf/tokens_per_s", "perf/step_time_s"}
    assert keys <= rows[-1].keys()
    items = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    assert len(items) == 2 * 4 and {"step", "origin", "reference", "prediction", "exact_match"} <= items[0].keys()
    kept = json.loads(folder.items.read_text())
    assert kept["step"] == 4 and set(kept["origin"]) >= {item["origin"] for item in items}
    assert sum(kept["loss"]) / sum(kept["tokens"]) == pytest.approx(summary["val"]["val/loss"], rel=1e-5)
    matches = [match for match in kept["exact_match"] if match is not None]
    assert len(matches) == 4 and sum(matches) / 4 == summary["val"]["val/exact_match"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ["tuner=lora"],
        ["tuner=dora", "data.workers=2"],
        ["tuner=full", "freeze=none"],
        ["trainer.accumulate=2", *PACKED],
        ["tuner.init=lora_ga", "tuner.lora_plus_ratio=4", "freeze.frozen=[vit]", "freeze.full=[aligner]"],
    ],
    ids=" ".join,
)
def test_a_resumed_run_is_the_run_it_would_have_been(run, choice):
    """Dropout is on; the break is in the middle of the second epoch."""
    common = [
        *choice,
        "optim.lr=1e-3",
        "trainer.save_every_steps=3",
        "trainer.val_every_steps=6",
        "trainer.batch_size=4",
    ]
    common += ["trainer.max_steps=9", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"]
    folder, _ = run("a", *common)
    expected, expected_weights = losses(folder), weights(folder, 9)
    # As a kill after step 3 would have left it: later rows are in metrics.jsonl, later checkpoints are not.
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to("step_3")
    _, code = run("a", *common, "trainer.resume=auto")
    assert code == 0 and folder.read_status()["attempt"] == 2
    assert losses(folder) == expected
    for name, value in weights(folder, 9).items():
        assert torch.equal(value, expected_weights[name]), name


def test_a_used_folder_is_not_overwritten(run, capsys):
    run("a", "trainer.max_steps=1")
    _, code = run("a", "trainer.max_steps=1")
    assert code == 2
    assert "already holds a run: go on with trainer.resume=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverged_run_says_so(run):
    folder, code = run("a", "tuner=full", "optim.lr=1e30", "trainer.max_steps=6", "trainer.log_every_steps=1")
    summary = json.loads(folder.summary.read_text())
    assert (code, summary["status"]) == (1, "diverged")
    assert "DivergedError" in summary["error"] and folder.read_status()["state"] == "diverged"


@pytest.mark.slow
def test_frozen_weights_do_not_change_in_a_run(run, make_tuned):
    from transformers import Qwen3VLForConditionalGeneration

    from harness.model.component import Component, component_of

    folder, _ = run("a", "tuner=full", "freeze=llm_vit", "optim.lr=1e-3", "trainer.max_steps=2")
    before = dict(make_tuned("tuner=full").base.named_parameters())
    after = Qwen3VLForConditionalGeneration.from_pretrained(folder.path / "model")
    for name, parameter in after.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == (component_of(name) is Component.aligner), name


def test_a_run_without_checkpoints_has_its_figures_and_its_result(run):
    folder, code = run("a", "trainer.max_steps=3", "trainer.val_every_steps=1", "trainer.checkpoints=false")
    assert code == 0 and not list(folder.path.glob("checkpoints/*"))
    summary = json.loads(folder.summary.read_text())
    assert summary["steps"] == 3 and summary["best"]["step"] is not None and summary["tokens_per_s"] > 0
    assert (folder.path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_best_checkpoint_is_exported_when_asked(run, monkeypatch):
    """The validation loss is made to rise, so that the best weights are not the last ones."""
    losses = iter([0.5, 1.0, 2.0, 3.0])
    monkeypatch.setattr(Evaluator, "_loss", lambda self, trainer, module: ({"val/loss": next(losses)}, {}))
    common = ["tuner=full", "optim.lr=1e-3", "trainer.max_steps=3", "trainer.val_every_steps=1"]
    folder, code = run("a", *common, "trainer.load_best=true", "data.generation.enabled=false")
    assert code == 0
    # The untrained model has no checkpoint, so its 0.5 does not count.
    assert json.loads(folder.summary.read_text())["best"] == {"metric": "val/loss", "value": 1.0, "step": 1}
    assert (folder.checkpoints / "best").resolve().name == "step_1"
    exported = load_file(folder.path / "model" / "model.safetensors")
    best, last = weights(folder, "best"), weights(folder, "last")
    assert any(not torch.equal(best[name], last[name]) for name in best)
    for name, value in best.items():
        if name != "model.lm_head.weight":  # tied to the embedding, and so not in the file
            assert torch.equal(exported[name.removeprefix("model.")], value), name


@pytest.fixture
def run_text(run, write_text):
    """As `run`, on eight rows of text and two of validation: a fraction of a second."""

    def start(name, *overrides):
        common = ["data=jsonl", "trainer.batch_size=4", "optim.lr=1e-3", "trainer.val_at_start=false"]
        rows = [f"data.train={write_text('train.jsonl', 8)}", f"data.val={write_text('val.jsonl', 2)}"]
        return run(name, *common, *rows, *overrides)

    return start


@pytest.fixture
def write_text(tmp_path):
    """Writes rows of text, once: later calls leave the file as it is."""

    def write(name, num_rows):
        path = tmp_path / name
        if not path.exists():
            path.write_text("".join(text_row(number) for number in range(num_rows)), encoding="utf-8")
        return path

    return write


def text_row(number):
    question, answer = f"what is {number} times {number}?", "a lot " * (number % 3 + 1)
    return json.dumps({"messages": [turn("user", question), turn("assistant", answer)]}) + "\n"


def turn(role, content):
    return {"role": role, "content": content}


def goes_on_after(folder, step):
    """Leaves the checkpoints as a kill after that step would have."""
    (folder.checkpoints / "last").unlink()
    (folder.checkpoints / "last").symlink_to(f"step_{step}")


@pytest.mark.slow
def test_a_finished_run_resumed_unchanged_stays_as_it_is(run_text):
    folder, _ = run_text("a", "trainer.max_steps=2")
    before = folder.summary.read_bytes(), folder.metrics.read_bytes()
    _, code = run_text("a", "trainer.max_steps=2", "trainer.resume=auto")
    assert code == 0
    assert (folder.summary.read_bytes(), folder.metrics.read_bytes()) == before
    assert folder.read_status()["state"] == "completed"


@pytest.mark.slow
def test_fewer_steps_than_are_done_are_refused(run_text, capsys):
    run_text("a", "trainer.max_steps=2")
    _, code = run_text("a", "trainer.max_steps=1", "trainer.resume=auto")
    assert code == 2
    assert "trainer.max_steps: the run has done 2 steps, and 1 are asked" in capsys.readouterr().err


@pytest.mark.slow
def test_a_longer_resumed_run_stretches_the_schedule(run_text):
    """From its first step on, the learning rate is that of a run of the new length."""
    schedule = ["optim.schedule.name=cosine", "optim.schedule.warmup_ratio=0.5"]
    folder, _ = run_text("a", *schedule, "trainer.max_steps=2")
    _, code = run_text("a", *schedule, "trainer.max_steps=6", "trainer.resume=auto")
    assert code == 0
    got = {row["step"]: row["train/lr/llm"] for row in read(folder.metrics)}
    expected = ScheduleConfig(warmup_ratio=0.5)
    assert list(got) == [1, 2, 3, 4, 5, 6]
    for step, rate in got.items():
        total = 2 if step <= 2 else 6
        assert rate == pytest.approx(1e-3 * multiplier(expected, step - 1, total)), f"step {step}"


@pytest.mark.slow
def test_rates_that_follow_validation_fall_and_go_on_after_a_resume(run_text, monkeypatch):
    losses = iter([1.0, 2.0, 3.0, 0.5, 2.0, 3.0])
    monkeypatch.setattr(Evaluator, "_loss", lambda self, trainer, module: ({"val/loss": next(losses)}, {}))
    plateau = ["name=reduce_lr_on_plateau", "factor=0.5", "patience=0", "cooldown=1", "warmup_steps=2"]
    common = [f"optim.schedule.{item}" for item in plateau] + ["trainer.val_every_steps=1"]
    folder, _ = run_text("a", *common, "trainer.max_steps=3")
    _, code = run_text("a", *common, "trainer.max_steps=6", "trainer.resume=auto")
    assert code == 0
    # Falls after the second validation; the third and so the resume lie in its rest, and the fifth makes it fall again.
    assert [row["train/lr/llm"] for row in read(folder.metrics)] == [0, 5e-4, 5e-4, 5e-4, 5e-4, 2.5e-4]


@pytest.mark.slow
def test_rates_that_follow_validation_need_one(run_text, capsys):
    _, code = run_text("a", "data.val=null", "optim.schedule.name=reduce_lr_on_plateau", "trainer.max_steps=1")
    assert code == 2
    assert "optim.schedule.name=reduce_lr_on_plateau: there are no validation rows" in capsys.readouterr().err


@pytest.mark.slow
def test_the_summary_of_a_resumed_run_is_that_of_the_whole_run(run_text):
    common = ["trainer.val_at_start=true", "trainer.max_steps=4", "trainer.save_every_steps=2"]
    common += ["trainer.val_every_steps=2", "optim.schedule.name=constant"]
    folder, _ = run_text("a", *common)
    whole = json.loads(folder.summary.read_text())
    goes_on_after(folder, 2)
    _, code = run_text("a", *common, "trainer.resume=auto")
    resumed = json.loads(folder.summary.read_text())
    assert code == 0 and whole["baseline"].keys() == {"val/loss"} and whole["tokens"] > 0
    for key in ("status", "tokens", "baseline", "val", "best", "train_loss", "steps", "trainable_parameters"):
        assert resumed[key] == whole[key], key


@pytest.mark.slow
def test_no_item_is_predicted_twice_after_a_resume(run_text):
    common = ["trainer.max_steps=3", "trainer.val_every_steps=1", "trainer.keep_checkpoints=9"]
    common += ["trainer.val_at_start=true", "data.generation.enabled=true"]
    folder, _ = run_text("a", *common)
    goes_on_after(folder, 1)
    _, code = run_text("a", *common, "trainer.resume=auto")
    assert code == 0
    items = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    seen = Counter((item["step"], item["origin"]) for item in items)
    assert set(seen.values()) == {1} and len(seen) == 4 * 2
    assert sorted({item["step"] for item in items}) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: content[:1000], lambda content: content[:-200], lambda content: b"x" * 1000],
    ids=["empty", "beginning only", "end lost", "something else"],
)
def test_a_damaged_checkpoint_is_refused_by_path_and_passed_over_by_auto(run_text, capsys, damage):
    common = ["trainer.max_steps=3", "trainer.save_every_steps=1", "trainer.keep_checkpoints=9"]
    folder, _ = run_text("a", *common)
    expected, expected_weights = losses(folder), weights(folder, 3)
    folder.summary.unlink()
    path = folder.checkpoints / "step_3" / FILE
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    _, code = run_text("a", *common, f"trainer.resume={folder.path}")
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert f"{path.parent}: damaged: {FILE}: " in error
    assert f"trainer.resume=auto hydra.run.dir={folder.path} goes on after step 2" in error
    _, code = run_text("a", *common, "trainer.resume=auto")
    assert code == 0 and f"{path.parent}: damaged: {FILE}: " in capsys.readouterr().err
    assert losses(folder) == expected
    for name, value in weights(folder, 3).items():
        assert torch.equal(value, expected_weights[name]), name


@pytest.mark.slow
def test_nothing_but_damaged_checkpoints_is_no_beginning(run_text, capsys):
    folder, _ = run_text("a", "trainer.max_steps=1")
    (folder.checkpoints / "step_1" / "manifest.json").unlink()
    _, code = run_text("a", "trainer.max_steps=2", "trainer.resume=auto")
    message = rf"step_1: damaged: manifest.json: missing; none of 1 checkpoints is whole: remove {folder.checkpoints}"
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_a_changed_file_of_rows_is_refused(run_text, tmp_path, capsys):
    folder, _ = run_text("a", "trainer.max_steps=2")
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(text_row(8))
    _, code = run_text("a", "trainer.max_steps=3", "trainer.resume=auto")
    assert code == 2
    assert "trainer.resume: the data changed since the run began" in capsys.readouterr().err
    assert [row["step"] for row in read(folder.metrics)] == [1, 2]
    stored = json.loads((folder.path / "environment.json").read_text())
    stored["packages"]["torch"] = "1.0"
    (folder.path / "environment.json").write_text(json.dumps(stored))
    _, code = run_text("a", "trainer.max_steps=3", "trainer.resume=auto", "trainer.force_resume=true")
    recorded = (folder.path / "train.log").read_text()
    assert code == 0 and "trainer.force_resume: the data changed since the run began" in recorded
    assert f"environment.json: packages.torch: 1.0 -> {torch.__version__} since the run began" in recorded
    assert [row["step"] for row in read(folder.metrics)] == [1, 2, 3]


@pytest.mark.slow
def test_another_number_of_rows_is_refused(run, capsys):
    common = ["trainer.val_at_start=false", "data.generation.enabled=false"]
    run("a", *common, "trainer.max_steps=1", "data.train_rows=32")
    _, code = run("a", *common, "trainer.max_steps=2", "data.train_rows=24", "trainer.resume=auto")
    assert code == 2
    assert "trainer.resume: the data changed since the run began" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_its_id_over_attempts(run_text):
    folder, _ = run_text("a", "trainer.max_steps=1")
    first = folder.read_status()
    run_text("a", "trainer.max_steps=2", "trainer.resume=auto")
    second = folder.read_status()
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["run_id"] == second["run_id"] != run_text("b", "trainer.max_steps=1")[0].read_status()["run_id"]


@pytest.mark.slow
def test_the_best_of_no_validation_is_refused(run_text, capsys):
    folder, code = run_text("a", "data.val=null", "trainer.load_best=true", "trainer.max_steps=1")
    assert code == 2
    assert re.search(r"trainer\.load_best=\w+: there are no validation rows", capsys.readouterr().err)
    assert not folder.checkpoints.exists()


@pytest.fixture
def raise_at_step(monkeypatch):
    """Makes the training step with this number, from 1, raise. Lightning leaves Ctrl-C ignored; that is undone."""
    handler = signal.getsignal(signal.SIGINT)
    original = TrainingModule.training_step

    def install(step, error):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == step - 1:
                raise error
            return original(self, batch, batch_idx)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)

    yield install
    signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_did(run_text, raise_at_step, capfd):
    raise_at_step(3, KeyboardInterrupt())
    folder, code = run_text("a", "trainer.max_steps=5", "trainer.val_every_steps=5")
    output = capfd.readouterr()
    assert code == 130 and output.out.splitlines()[-1] == f"run: {folder.path}"
    assert "Traceback" not in output.err + (folder.path / "train.log").read_text()
    assert folder.read_status()["state"] == json.loads(folder.summary.read_text())["status"] == "preempted"
    assert list(losses(folder)) == [1, 2]


@pytest.mark.slow
def test_a_crash_is_on_record(run_text, raise_at_step):
    raise_at_step(3, LookupError("nothing here"))
    folder, code = run_text("a", "trainer.max_steps=5", "trainer.val_every_steps=5")
    summary = json.loads(folder.summary.read_text())
    assert (code, summary["status"], summary["error"]) == (1, "failed", "LookupError: nothing here")
    assert (folder.read_status()["state"], folder.read_status()["exit_reason"]) == ("failed", summary["error"])
    recorded = (folder.path / "train.log").read_text()
    assert "Traceback (most recent call last)" in recorded and "LookupError: nothing here" in recorded
    assert list(losses(folder)) == [1, 2]


@pytest.mark.slow
def test_a_data_worker_that_dies_is_no_mistake_of_the_users_wherever_it_shows(run, monkeypatch, capsys):
    """torch raises from a signal's handler, here where weights are read."""

    def die(self):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(Weights, "take", die)
    folder, code = run("a", "trainer.max_steps=1", "trainer.val_at_start=false")
    assert code == 1 and "model.path" not in capsys.readouterr().err
    assert folder.read_status()["exit_reason"].startswith("RuntimeError: DataLoader worker (pid 7) is killed")


def test_a_crashed_run_goes_on(run_text, raise_at_step, monkeypatch):
    """Steps after the last checkpoint are on record already; they run again and are there once."""
    common = ["trainer.max_steps=5", "trainer.save_every_steps=1", "trainer.log_every_steps=1"]
    whole, _ = run_text("whole", *common)
    raise_at_step(4, LookupError("nothing here"))
    folder, _ = run_text("a", *common)
    monkeypatch.undo()
    goes_on_after(folder, 2)
    _, code = run_text("a", *common, "trainer.resume=auto")
    assert code == 0 and losses(folder) == losses(whole)


@pytest.mark.slow
def test_rows_of_text_are_answered_too(run_text):
    folder, code = run_text("a", "data.generation.enabled=true", "trainer.max_steps=1")
    assert code == 0
    items = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    assert sorted(item["reference"].strip() for item in items) == ["a lot", "a lot a lot"]


@pytest.mark.slow
def test_a_run_killed_before_its_result_gets_one(run):
    common = ["trainer.max_steps=3", "trainer.val_at_start=false"]
    folder, _ = run("a", *common)
    expected = json.loads(folder.summary.read_text())
    folder.summary.unlink()
    (folder.path / "adapter" / "adapter_model.safetensors").unlink()
    _, code = run("a", *common, "trainer.resume=auto")
    summary = json.loads(folder.summary.read_text())
    assert code == 0 and (folder.path / "adapter" / "adapter_model.safetensors").is_file()
    assert {key: summary[key] for key in ("status", "steps", "tokens", "train_loss", "val", "best")} == {
        key: expected[key] for key in ("status", "steps", "tokens", "train_loss", "val", "best")
    }


RANK = """
import atexit, sys, threading
from harness.experiment.trial import end
atexit.register(print, "handlers run")
threading.Thread(target=threading.Event().wait).start()
end(int(sys.argv[1]), is_rank=True)
"""


@pytest.mark.parametrize(("code", "said"), [(0, "handlers run\n"), (1, "")])
def test_a_rank_ends_whatever_threads_are_left(code, said):
    done = subprocess.run([sys.executable, "-c", RANK, str(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, said)
