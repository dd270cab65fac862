"""A run that stands still ends with the stacks of all threads on record, and one that is only slow does not."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import harness
from harness import config
from harness.compose import compose_config
from harness.errors import EXIT_HUNG, UserError
from harness.experiment.folder import RunFolder
from harness.logging.metrics import read

ROOT = Path(harness.__file__).parent.parent
LIMIT = 8
QUICK = (
    "data.train_rows=32",
    "data.held_out=2",
    "data.generation.enabled=false",
    "data.workers=1",
    "data.prefetch=1",
    "trainer.accelerator=cpu",
    "trainer.batch_size=4",
    "trainer.max_steps=5",
    "trainer.save_every_steps=1",
    "trainer.log_every_steps=1",
)
ALONE = """
import multiprocessing, sys, time
from pathlib import Path
from harness.trainer.watchdog import Watchdog, writes_stacks


def worker_that_hangs(started):
    started.set()
    time.sleep(60)


def step_that_hangs():
    time.sleep(60)


def slow():
    for _ in range(4):
        time.sleep(0.3)
        watchdog.begin("a step")
    watchdog.pause()
    time.sleep(1)
    watchdog.begin("a step")


log = Path(sys.argv[1])
with writes_stacks(log) as stacks:
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    worker = fork.Process(target=worker_that_hangs, args=(started,), name="loader", daemon=True)
    worker.start()
    started.wait()
    watchdog = Watchdog(0.5, stacks, lambda error: print(f"{error}, worker {worker.pid}", flush=True))
    watchdog.start()
    time.sleep(1)  # before the first sign of life
    watchdog.begin("a step")
    slow()
    print("slow", flush=True)
    {hang}
    watchdog.stop()
    time.sleep(1)
    worker.kill()
"""


def environment(*paths):
    return {**os.environ, "PYTHONPATH": ":".join(map(str, (*paths, ROOT))), "OMP_NUM_THREADS": "1"}


@contextmanager
def started(tmp_path, hang):
    (tmp_path / "alone.py").write_text(ALONE.replace("{hang}", hang))
    command = [sys.executable, str(tmp_path / "alone.py"), str(tmp_path / "log")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        yield process


def test_a_process_that_hangs_ends_with_its_stacks_and_those_of_its_workers(tmp_path):
    with started(tmp_path, "step_that_hangs()") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_HUNG
    slow, told = out.splitlines()
    assert slow == "slow" and told.startswith("a step took more than 0.5 s (trainer.watchdog_s), worker ")
    log = (tmp_path / "log").read_text()
    assert log.startswith(f"process {process.pid}: a step took more than 0.5 s")
    assert "in step_that_hangs" in log and "worker loader, process" in log and "in worker_that_hangs" in log
    state, until = Path(f"/proc/{told.split()[-1]}/stat"), time.monotonic() + 10
    # A killed process may have a moment to go; then it is gone, or waits for its new parent to look.
    while (left := _state(state)) not in (None, "Z") and time.monotonic() < until:
        time.sleep(0.05)
    assert left in (None, "Z")


def _state(stat: Path) -> str | None:
    try:
        return stat.read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_what_was_stopped_and_goes_on_has_not_hung(tmp_path):
    with started(tmp_path, "") as process:
        assert process.stdout.readline() == "slow\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        code = process.wait(60)
    assert code == 0 and (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("limit", ["0", "-1", "inf"])
def test_a_limit_is_a_number_of_seconds(make_config, limit):
    with pytest.raises(UserError, match=r"trainer\.watchdog_s=.*: must be more than 0 seconds, or null"):
        make_config(f"trainer.watchdog_s={limit}")


HANGS = {
    "nothing": "pass",
    "step": """
import harness.trainer.module as place
real, calls = place.token_losses, []


def step_that_hangs(*args):
    calls.append(1)
    if len(calls) == 4:
        time.sleep(600)
    return real(*args)


place.token_losses = step_that_hangs
""",
    "worker": """
from harness.data.loader import MakeBatch
real, calls = MakeBatch.__call__, []


def worker_that_hangs(self, units):
    calls.append(1)
    if len(calls) == 4:
        time.sleep(600)
    return real(self, units)


MakeBatch.__call__ = worker_that_hangs
""",
    "unwatched": """
from harness.trainer.watchdog import Watchdog
Watchdog.start = lambda self: None
""",
    "slow": f"""
import harness.trainer.module as place
from harness.trainer.checkpoint import Checkpointer
from harness.trainer.evaluate import Evaluator
real, calls = place.token_losses, []


def first_is_slow(*args):
    calls.append(1)
    if len(calls) == 1:
        time.sleep({LIMIT + 3})
    return real(*args)


def slow(method, last=[]):
    def call(self, trainer, *args, **named):
        time.sleep({LIMIT + 3} if trainer.global_step == 2 else 0)
        return method(self, trainer, *args, **named)
    return call


place.token_losses = first_is_slow
Evaluator.run = slow(Evaluator.run)
Checkpointer.save = slow(Checkpointer.save)
""",
}


@pytest.fixture
def run(tmp_path):
    """Runs a trial in processes of which some are told how to hang; returns folder, exit code and output."""

    def begin(hangs, *overrides):
        folder = RunFolder(tmp_path / "run")
        if not folder.path.is_dir():
            folder.path.mkdir()
        config.save(compose_config([*QUICK, f"trainer.watchdog_s={LIMIT}", *overrides]), folder.config)
        place = tmp_path / "hangs"
        place.mkdir(exist_ok=True)
        code = "import os, sys, time\nrank = os.environ.get('RANK', '0')\n"
        for rank, hang in enumerate(hangs):
            code += f"if 'harness.experiment.trial' in sys.orig_argv and rank == '{rank}':\n"
            code += "".join(f"    {line}\n" for line in HANGS[hang].splitlines())
        (place / "sitecustomize.py").write_text(code)
        command = [sys.executable, "-m", "harness.experiment.trial", str(folder.path)]
        done = subprocess.run(command, env=environment(place), capture_output=True, text=True, timeout=300)
        return folder, done

    return begin


def check_end(folder, done, steps, doing):
    assert done.returncode == EXIT_HUNG, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {folder.path}"
    summary, status = folder.read_summary(), folder.read_status()
    assert (summary["status"], status["state"]) == ("failed", "failed")
    for reason in (summary["error"], status["exit_reason"]):
        assert f"HungError: {doing} took more than {LIMIT} s (trainer.watchdog_s)" in reason
    assert not folder.is_held and summary["steps"] == steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hang", "steps", "doing"),
    # Lightning asks for a batch while the one before is there.
    [("step", 3, "a micro-batch of step 4"), ("worker", 2, "waiting for a batch after step 2")],
)
def test_a_run_that_hangs_ends_and_goes_on_from_its_last_checkpoint(run, hang, steps, doing):
    folder, done = run([hang])
    check_end(folder, done, steps, doing)
    log = (folder.path / "train.log").read_text()
    assert f"in {hang}_that_hangs" in log and "Thread 0x" in log
    folder, done = run([], "trainer.resume=auto")
    assert done.returncode == 0, done.stderr
    assert f"goes on after step {steps}" in done.stderr and folder.read_summary()["steps"] == 5


@pytest.mark.slow
def test_the_first_step_validation_and_saves_may_take_longer(run):
    folder, done = run(["slow"], "trainer.val_every_steps=2")
    assert done.returncode == 0, done.stderr
    assert len(read(folder.metrics)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("other", ["nothing", "unwatched"])
def test_stacks_of_every_rank_are_written(run, other):
    """By ranks at their own limit, or when another one is at its."""
    folder, done = run([other, "step"], "trainer.devices=2")
    check_end(folder, done, 3, "a micro-batch of step 4")
    ours, theirs = ((folder.path / name).read_text() for name in ("train.log", "ranks/rank_1.log"))
    assert "in step_that_hangs" in theirs and "in step_that_hangs" not in ours
    assert "harness/experiment/train.py" in ours and "(most recent call first)" in ours
    assert ("process " in ours) is (other == "nothing")
