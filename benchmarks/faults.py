"""Runs to be killed, signalled, damaged and left without disk: for reliability.py and tests/faults.

A run is forked from a process that has imported everything, since imports take much longer than runs of the tiny model.
"""

import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness import config, registry
from harness.compose import compose_config
from harness.experiment import trial
from harness.experiment.folder import RunFolder
from harness.logging.metrics import read
from harness.trainer import durable
from harness.trainer.checkpoint import FILE, Checkpointer

STEPS, EVERY = 8, 2
COMMON = (
    "data=jsonl", "data.workers=0", "data.generation.enabled=false", "optim.lr=1e-3", "trainer.batch_size=4",
    "trainer.val_at_start=false", "trainer.log_every_steps=1", f"trainer.max_steps={STEPS}",
    f"trainer.save_every_steps={EVERY}", f"trainer.val_every_steps={STEPS // 2}", "trainer.keep_checkpoints=3",
)  # fmt: skip
"""Two and a half epochs; dropout is on, as by default."""
MODES: dict[str, tuple[str, ...]] = {
    "lora": ("tuner=lora",),
    "full": ("tuner=full",),
    "galore": ("tuner=full", "optim=galore", "optim.rank=8"),
    "packed": ("data.packing=true", "data.packing_length=64"),
    "accumulation": ("trainer.batch_size=2", "trainer.accumulate=2"),
    "background": ("trainer.async_save=true",),
    "dora": ("tuner=dora",),
    "lisa": ("tuner=full", "optim=lisa", "optim.activated_layers=1", "optim.step_interval=2"),
    "adalora": ("tuner=adalora",),
}
_LIMIT_S = 300.0


class Bench:
    """A folder with rows of text, and the runs in it."""

    def __init__(
        self,
        home: Path,
        modes: Mapping[str, tuple[str, ...]] = MODES,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Writes the rows.

        Args:
            home: An empty folder.
            modes: Overrides of each.
            before: Called first in the process of each run.
        """
        self.home, self.modes, self._before = home, modes, before
        self._whole: dict[str, tuple[RunFolder, float]] = {}
        registry.load()
        for name, number in (("train", 13), ("val", 3)):
            lines = [json.dumps({"messages": _turns(index)}) + "\n" for index in range(number)]
            (home / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def prepare(self, name: str, *overrides: str) -> RunFolder:
        """Makes a run folder, or changes the config of one."""
        folder = RunFolder(self.home / name)
        folder.path.mkdir(exist_ok=True)
        rows = [f"data.train={self.home / 'train.jsonl'}", f"data.val={self.home / 'val.jsonl'}"]
        rows += [f"data.cache_dir={self.home / 'cache'}"]
        config.save(compose_config([*COMMON, *rows, *overrides]), folder.config)
        return folder

    def whole(self, mode: str) -> tuple[RunFolder, float]:
        """Returns the undisturbed run of a mode and its seconds; it is made once."""
        if mode not in self._whole:
            folder = self.prepare(f"whole_{mode}", *self.modes[mode])
            began = time.monotonic()
            code = wait(self.start(folder))
            assert code == 0, console(folder)
            self._whole[mode] = folder, time.monotonic() - began
        return self._whole[mode]

    def start(self, folder: RunFolder) -> int:
        """Starts a run that is prepared, and returns its process id."""
        return start(folder, self._before)

    def resume(self, folder: RunFolder, *overrides: str) -> int:
        """Lets a run go on by itself, and returns its exit code."""
        self.prepare(folder.path.name, *overrides, "trainer.resume=auto")
        return wait(self.start(folder))


def start(folder: RunFolder, before: Callable[[], None] | None = None) -> int:
    """Forks a run, of which the console goes to a file, and returns its process id.

    Args:
        folder: With its config.
        before: Called in the new process first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of forks beside threads
        if pid := os.fork():
            return pid
    code = 70
    try:
        output = os.open(folder.path / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if before is not None:
            before()
        code = trial.main([str(folder.path)])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Waits for a run and returns its exit code, negative for a signal."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"the run still ran after {_LIMIT_S:.0f} s")


def console(folder: RunFolder) -> str:
    """Returns the end of what a run printed."""
    return (folder.path / "console.log").read_text(errors="replace")[-3000:]


def outcome(folder: RunFolder) -> dict[str, Any]:
    """Returns what has to be the same however often a run was disturbed."""
    rows = read(folder.metrics)
    weights = next(path for name in ("adapter", "model") for path in (folder.path / name).glob("*model.safetensors"))
    return {
        "steps": [row["step"] for row in rows],
        "losses": [row["train/loss"] for row in rows],
        "val": [row["val/loss"] for row in rows if "val/loss" in row],
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def kill(pid: int, draw: random.Random) -> int:
    """Kills a run of one process, and returns how it ended."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def kill_at_random(
    bench: Bench, mode: str, name: str, draw: random.Random, kill: Callable[[int, random.Random], int] = kill
) -> dict[str, Any]:
    """Kills a run at a random moment, lets it go on, and compares it with the undisturbed one.

    Args:
        bench: The runs.
        mode: One of its modes.
        name: Of the run.
        draw: Draws the moment.
        kill: Kills a run by its process id, and returns its exit code when all of it is gone.
    """
    whole, seconds = bench.whole(mode)
    folder = bench.prepare(name, *bench.modes[mode])
    pid = bench.start(folder)
    time.sleep(draw.uniform(0.0, seconds))
    code = kill(pid, draw)
    rows, reason = read(folder.metrics) if folder.metrics.is_file() else [], folder.read_status().get("exit_reason")
    resumed = bench.resume(folder, *bench.modes[mode])
    same = resumed == 0 and outcome(folder) == outcome(whole)
    ended = {"killed": code != 0, "code": code, "reason": reason, "resumed": resumed}
    return {"mode": mode, "after_step": rows[-1]["step"] if rows else 0, **ended, "ok": same}


def count_calls(end_at: tuple[str, int] | None, into: Path | None = None) -> Callable[[], None]:
    """Returns what makes a process count the calls of saves that change the disk, and die in one of them.

    Args:
        end_at: Kind (write, other) and number of the call, from 1, before which it dies; half of a write is done first.
            None: never.
        into: File for the numbers of calls.
    """

    def install() -> None:
        counted, inside = {"write": 0, "other": 0}, [False]
        finish, write = Checkpointer._finish, durable.HashedFile.write

        def hit(kind: str, die: Callable[[], None] = lambda: None) -> None:
            counted[kind] += inside[0]
            if inside[0] and (kind, counted[kind]) == end_at:
                die()
                os.kill(os.getpid(), signal.SIGKILL)

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                hit("other")
                return function(*args, **kwargs)

            return call

        def half(self: durable.HashedFile, data: Any) -> int:
            view = memoryview(data).cast("B")
            hit("write", lambda: (self._file.write(view[: len(view) // 2]), self._file.flush())[0])
            return write(self, data)

        def finishing(self: Checkpointer, *args: Any) -> None:
            inside[0] = True
            finish(self, *args)
            inside[0] = False
            if into is not None:
                into.write_text(json.dumps(counted))

        durable.HashedFile.write = half  # type: ignore[method-assign]
        Checkpointer._finish = finishing  # type: ignore[method-assign]
        for owner, name in ((os, "fsync"), (os, "replace"), (os, "symlink"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, counting(getattr(owner, name)))

    return install


def kill_in_save(bench: Bench, mode: str, name: str, draw: random.Random) -> dict[str, Any]:
    """Kills a run within a save, looks whether what it had saved is whole, and lets it go on."""
    whole, _ = bench.whole(mode)
    counts = bench.home / f"calls_{mode}"
    if not counts.is_file():
        folder = bench.prepare(f"counted_{mode}", *MODES[mode])
        assert wait(start(folder, count_calls(None, counts))) == 0, console(folder)
    kind = draw.choice(["write", "other"])
    end_at = kind, draw.randint(1, json.loads(counts.read_text())[kind])
    folder = bench.prepare(name, *MODES[mode])
    code = wait(start(folder, count_calls(end_at)))
    faults = [fault for step in checkpoints(folder) if (fault := of(folder).fault(step))]
    resumed = bench.resume(folder, *MODES[mode])
    left = [path.name for path in folder.checkpoints.glob(".*")]
    same = code == -signal.SIGKILL and resumed == 0 and outcome(folder) == outcome(whole)
    return {"mode": mode, "call": end_at, "ok": same and not faults and not left, "faults": faults, "left": left}


def end_by_signal(
    bench: Bench,
    mode: str,
    name: str,
    number: signal.Signals = signal.SIGTERM,
    after: int = 1,
    send: Callable[[int, int], None] = os.kill,
) -> dict[str, Any]:
    """Asks a run to end behind a step; measures how long that takes and looks at what it leaves."""
    whole, _ = bench.whole(mode)
    folder = bench.prepare(name, *bench.modes[mode])
    pid = bench.start(folder)
    while not (folder.metrics.is_file() and len(folder.metrics.read_bytes().splitlines()) >= after):
        time.sleep(0.002)
    began = time.monotonic()
    send(pid, number)
    code = wait(pid)
    seconds, steps = time.monotonic() - began, len(read(folder.metrics))
    left = of(folder).step_of("last")
    whole_one = left == steps and of(folder).fault(steps) is None
    state = folder.read_status()["state"]
    same = bench.resume(folder, *bench.modes[mode]) == 0 and outcome(folder) == outcome(whole)
    right = (code, state) == (128 + number, "preempted")
    return {"mode": mode, "seconds": seconds, "code": code, "saved": whole_one, "ok": right and whole_one and same}


def without_room(bench: Bench, kind: str, policy: str, name: str) -> dict[str, Any]:
    """Lets the disk be full in the second save and the third.

    Args:
        bench: The runs.
        kind: foreseen or unforeseen (a small tmpfs, which root alone can have), or limit (of a file's size).
        policy: Of trainer.on_save_error.
        name: Of the run.
    """
    whole, _ = bench.whole("lora")
    folder = bench.prepare(name, *MODES["lora"], f"trainer.on_save_error={policy}")
    size = sum(path.stat().st_size for path in (whole.checkpoints / f"step_{STEPS}").iterdir())

    def narrow() -> None:
        finish, number = Checkpointer._finish, [0]

        def finishing(self: Checkpointer, *args: Any) -> None:
            number[0] += 1
            full = number[0] in (2, 3)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            if full and kind == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
            elif full:
                free = shutil.disk_usage(self.folder).free
                (self.folder / "others").write_bytes(b"x" * (free - size // 2))
            try:
                finish(self, *args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
                (self.folder / "others").unlink(missing_ok=True)

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        Checkpointer._finish = finishing  # type: ignore[method-assign]
        if kind != "foreseen":
            Checkpointer._check_room = lambda self, size: None  # type: ignore[method-assign]

    with small_disk(folder.checkpoints, 8 * size + 16 * 2**20) if kind != "limit" else _nothing():
        code = wait(start(folder, narrow))
        kept = checkpoints(folder)
        good = all(of(folder).fault(step) is None for step in kept)
        said = "NO CHECKPOINT of step 4" in (folder.path / "train.log").read_text()
        left = list(folder.checkpoints.glob(".*"))
        if policy == "continue":
            figures = folder.read_summary()["saves"]
            right = code == 0 and (figures["saved"], figures["failed"]) == (2, 2) and kept == [2, 8]
        else:
            right = code == 1 and kept == [2] and folder.read_status()["state"] == "failed"
            right = right and bench.resume(folder, *MODES["lora"]) == 0
        same = outcome(folder) == outcome(whole)
    return {"kind": kind, "policy": policy, "ok": right and good and said and not left and same, "kept": kept}


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """Mounts a file system of a size in memory."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def can_mount(home: Path) -> bool:
    """Says whether this user and machine can have a small disk."""
    try:
        with small_disk(home / "disk", 2**20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def of(folder: RunFolder) -> Checkpointer:
    """Returns what looks at a run's checkpoints."""
    return Checkpointer(folder.checkpoints, keep=3)


def checkpoints(folder: RunFolder) -> list[int]:
    """Returns the steps that there are."""
    return of(folder)._steps()


def parts(home: Path) -> RunFolder:
    """Makes a run folder with two checkpoints as torch.distributed.checkpoint writes them, a folder of parts each."""
    import torch.distributed.checkpoint as dcp

    from harness.trainer import manifest

    folder = RunFolder(home / "parts")
    for step in (1, 2):
        path = folder.checkpoints / f"step_{step}"
        state = {"weights": torch.arange(5000.0) * step, "moments": torch.ones(5000)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no process group is there
            dcp.save(state, checkpoint_id=path / FILE, no_dist=True)
        torch.save({"epoch": 0}, path / FILE / "meta.pt")
        manifest.write(path, step, {})
        of(folder).go_on_from(step, [])
    return folder


DAMAGES = ("flip", "cut", "delete", "empty", "grow", "stranger")


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Does something to a file: one byte, or its length, or its being there."""
    content = path.read_bytes()
    if kind == "flip":
        place = draw.randrange(len(content))
        changed = content[place] ^ (1 << draw.randrange(8))
        path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "delete":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "grow":
        path.write_bytes(content + draw.randbytes(1 + draw.randrange(64)))
    else:
        path.with_name("stranger.bin").write_bytes(b"x")


def damaged(folder: RunFolder, path: Path, kind: str, draw: random.Random) -> dict[str, Any]:
    """Damages a file of the newest checkpoint, looks for what is found, and mends it.

    Returns:
        Whether it was found, which checkpoint a resume would take, and whether torch alone would have loaded the file.
    """
    from harness.experiment.restore import newest_whole

    content, last = path.read_bytes(), os.readlink(folder.checkpoints / "last")
    newest, *older = of(folder).candidates()
    damage(path, kind, draw)
    fault = of(folder).fault(newest)
    logging.disable()
    taken = newest_whole(of(folder), falls_back=True)
    logging.disable(logging.NOTSET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=True, map_location="cpu")
            loads = True
        except Exception:
            loads = False
    path.write_bytes(content)
    path.with_name("stranger.bin").unlink(missing_ok=True)
    of(folder).go_on_from(int(last.removeprefix("step_")), [])
    named = fault is not None and "\n" not in fault
    return {"file": path.name, "kind": kind, "torch_loads": loads, "ok": named and taken == older[0]}


def _turns(number: int) -> list[dict[str, str]]:
    answer = "a lot " * (number % 3 + 1)
    question = f"what is {number} times {number}?"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
