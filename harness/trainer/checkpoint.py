"""Checkpoints of a run: one folder per saved step, and links to the last and the best.

A checkpoint is staged beside its target, synced and renamed, so a folder named step_N is whole; its manifest
(`harness.trainer.manifest`) tells later whether it still is. An old one is removed only behind the new one. Lightning's
own save is not atomic where the temporary folder lies on another file system.

In the background, the state is copied to host memory between two steps, and a thread does the rest. The next save, the
end of the run and a signal wait for it.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning
from torch.distributed.checkpoint.api import CheckpointException

from harness.trainer import durable, manifest
from harness.trainer.snapshot import Holder

log = logging.getLogger(__name__)

FILE = "trainer.ckpt"
"""Lightning's checkpoint inside a step's folder: trainable weights, optimiser, schedule, loops, random state.

A folder itself where each rank writes its part: torch.distributed.checkpoint's or DeepSpeed's.
"""
_PREFIX, _STAGE, _OLD = "step_", ".step_", ".old_step_"
_LINKS = ("last", "best")
_SPARE_BYTES = 4 * 2**20
"""Room beside a checkpoint: its own table of contents, and the run's other files."""


class NoRoomError(OSError):
    """The disk is too full for a checkpoint."""


class NotSavedError(RuntimeError):
    """A checkpoint could not be written, and the run is not to go on without."""


@dataclass(slots=True)
class Saves:
    """What saving came to in this process."""

    saved: int = 0
    failed: int = 0
    stall_s: float = 0.0
    """Seconds that training stood still for it."""
    longest_stall_s: float = 0.0
    write_s: float = 0.0
    """Seconds from the state to the checkpoint on the disk, verified by nothing but its manifest."""
    size_mib: float | None = None
    """Of the last one."""


@dataclass(slots=True)
class Checkpointer:
    """Saves, links and prunes below `checkpoints/`. Made on every rank; the first one writes."""

    folder: Path
    keep: int
    """Newest checkpoints kept beside the best."""
    goes_on: bool = False
    """Whether a save that fails is counted, and the run goes on; else it raises NotSavedError."""
    parts: bool = False
    """Whether all ranks write, into a folder."""
    in_background: bool = False
    saves: Saves = field(default_factory=Saves)
    holder: Holder = field(init=False)
    """For Lightning's strategy, where one rank writes a file."""
    _unusable: set[int] = field(default_factory=set)
    _pool: ThreadPoolExecutor | None = None
    _pending: "Future[None] | None" = None
    _told: Saves = field(default_factory=Saves)

    def __post_init__(self) -> None:
        """Makes the holder."""
        self.holder = Holder(keeps=self.in_background)

    def save(self, trainer: lightning.Trainer, step: int, *, best: bool) -> None:
        """Saves the state after an optimiser step. Called on every rank.

        Args:
            trainer: Lightning's trainer, between two steps.
            step: Number of the step.
            best: Whether this is the best so far.

        Raises:
            NotSavedError: This save failed, or the one before in the background, and the run is not to go on.
        """
        begun = time.perf_counter()
        self.wait()
        stage = self.folder / f"{_STAGE}{step}"
        try:
            if self.parts:
                self._foresee(trainer)
            trainer.save_checkpoint(stage / FILE, weights_only=False)
        except (NoRoomError, CheckpointException) as error:
            # Only what all ranks know of: one that fails alone has left the others waiting, and ends the run.
            self._fail(step, OSError(errno.ENOSPC, str(error).splitlines()[0]), trainer.is_global_zero)
            return
        if trainer.is_global_zero:
            self._hand_over(step, best)
        self._stalled(time.perf_counter() - begun)

    def poll(self) -> None:
        """Raises what a save in the background ended in, if it has ended.

        Raises:
            NotSavedError: It failed, and the run is not to go on.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in the background.

        Raises:
            NotSavedError: As for `poll`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the save in the background and says nothing of how it ended: something else has ended the run."""
        with suppress(NotSavedError):
            self.wait()
        if self._pool is not None:
            self._pool.shutdown()

    def figures(self) -> dict[str, float]:
        """Returns `perf/...` metrics of the saves that ended since the last call, in seconds."""
        now, before = self.saves, self._told
        self._told = Saves(**asdict(now))
        if (now.saved, now.failed) == (before.saved, before.failed):
            self._told.stall_s = before.stall_s
            return {}
        return {
            "perf/save_stall_s": now.stall_s - before.stall_s,
            "perf/save_write_s": now.write_s - before.write_s,
        }

    def step_of(self, name: str) -> int | None:
        """Returns the step that `last` or `best` points to, or None."""
        link = self.folder / name
        return number_of(link.resolve().name) if (link / FILE).exists() else None

    def path_of(self, name: str) -> Path:
        """Returns the checkpoint behind `last` or `best`."""
        return (self.folder / name).resolve() / FILE

    def fault(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, in one line; None: nothing."""
        folder = self.folder / f"{_PREFIX}{step}"
        return manifest.fault(folder, step) if folder.is_dir() else "missing"

    def candidates(self) -> list[int]:
        """Returns the steps up to the one that `last` points to, whether it is there or not, from the newest."""
        steps, link = set(self._steps()), self.folder / "last"
        if link.is_symlink() and (last := number_of(os.readlink(link))) is not None:
            steps = {step for step in steps if step <= last} | {last}
        return sorted(steps, reverse=True)

    def clean(self) -> None:
        """Removes what a killed process left half done. For the first rank, before anything is saved."""
        for path in [
            path for name in (_STAGE, _OLD, ".last", ".best", ".start") for path in self.folder.glob(f"{name}*")
        ]:
            aside = path.name.removeprefix(_OLD)
            if path.name.startswith(_OLD) and not (self.folder / f"{_PREFIX}{aside}").exists():
                os.replace(path, self.folder / f"{_PREFIX}{aside}")
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def go_on_from(self, step: int, unusable: list[int]) -> None:
        """Makes a step the last one. For the first rank.

        Args:
            step: Whole.
            unusable: Damaged ones, which are removed when the next one is written.
        """
        self._unusable = set(unusable)
        self._link("last", self.folder / f"{_PREFIX}{step}")
        link = self.folder / "best"
        if link.is_symlink() and number_of(os.readlink(link)) in self._unusable:
            log.warning("checkpoints/best was the damaged %s: the next validation is the best", os.readlink(link))
            link.unlink()

    def _hand_over(self, step: int, best: bool) -> None:
        state = self.holder.release()

        def finish() -> None:
            self._finish(state, step, best)

        if not self.in_background:
            finish()
            return
        self._pool = self._pool or ThreadPoolExecutor(1, "checkpoint")
        self._pending = self._pool.submit(finish)

    def _finish(self, state: dict[str, Any] | None, step: int, best: bool) -> None:
        """Makes a checkpoint of what is staged, or of a state; runs in the thread where there is one."""
        begun = time.perf_counter()
        stage, target = self.folder / f"{_STAGE}{step}", self.folder / f"{_PREFIX}{step}"
        try:
            known = {}
            if state is not None:
                self._check_room(self.holder.snapshot.num_bytes)
                known[FILE] = manifest.Entry(*durable.save(state, stage / FILE))
            else:
                durable.sync_tree(stage)
            size = manifest.write(stage, step, known)
            self._put(stage, target)
            self._unusable.discard(step)
            for name in _LINKS if best else _LINKS[:1]:
                self._link(name, target)
        except OSError as error:
            self._fail(step, error)
            return
        self._prune(step)
        self.saves.size_mib = size / 2**20
        self.saves.write_s += time.perf_counter() - begun
        self.saves.saved += 1

    def _fail(self, step: int, error: OSError, writes: bool = True) -> None:
        """Takes back a save that failed, and counts or raises it."""
        self.saves.failed += 1
        if writes:
            shutil.rmtree(self.folder / f"{_STAGE}{step}", ignore_errors=True)
        last = self.step_of("last")
        kept = "there is none before it" if last is None else f"checkpoints/last is step {last}"
        message = f"NO CHECKPOINT of step {step}: {error.strerror or error}; {kept}"
        if not self.goes_on:
            raise NotSavedError(f"{message} (trainer.on_save_error=stop)") from error
        if writes:
            log.error("%s; training goes on (trainer.on_save_error=continue)", message)

    def _foresee(self, trainer: lightning.Trainer) -> None:
        """Looks for room before all ranks begin to write.

        Raises:
            NoRoomError: There is none; on all ranks.
        """
        short = None
        if trainer.is_global_zero:
            last = self.path_of("last")
            known = sum(path.stat().st_size for path in last.rglob("*")) if last.is_dir() else _estimate(trainer)
            try:
                self._check_room(known)
            except NoRoomError as error:
                short = str(error)
        if (short := trainer.strategy.broadcast(short)) is not None:
            raise NoRoomError(short)

    def _check_room(self, size: int) -> None:
        """Compares the space that a save takes with what is free, for a full disk may take other files with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = size + size // 50 + _SPARE_BYTES, shutil.disk_usage(self.folder).free
        if free < needed:
            raise NoRoomError(f"the disk has {free / 2**20:,.1f} MiB left, and {needed / 2**20:,.1f} are needed")

    def _stalled(self, seconds: float) -> None:
        self.saves.stall_s += seconds
        self.saves.longest_stall_s = max(self.saves.longest_stall_s, seconds)

    def _put(self, stage: Path, target: Path) -> None:
        """Renames the staged folder; one that has the name already goes when the new one is there."""
        aside = self.folder / target.name.replace(_PREFIX, _OLD)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(target, aside)
        os.replace(stage, target)
        durable.sync(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def _link(self, name: str, target: Path) -> None:
        stage = self.folder / f".{name}"
        stage.unlink(missing_ok=True)
        stage.symlink_to(target.name)
        os.replace(stage, self.folder / name)
        durable.sync(self.folder)

    def _prune(self, step: int) -> None:
        """Removes those that are too many, damaged, or of steps that run again; under a name that none has."""
        usable = [known for known in self._steps() if known <= step and known not in self._unusable]
        kept = {*usable[-self.keep :], self.step_of("best"), self.step_of("last")}
        for known in set(self._steps()) - kept:
            aside = self.folder / f"{_OLD}{known}"
            try:
                os.replace(self.folder / f"{_PREFIX}{known}", aside)
                shutil.rmtree(aside)
            except OSError as error:
                log.warning("checkpoints/step_%d is not needed any more and can not be removed: %s", known, error)

    def _steps(self) -> list[int]:
        numbers = [number_of(path.name) for path in self.folder.glob(f"{_PREFIX}*")]
        return sorted(number for number in numbers if number is not None)


def number_of(name: str) -> int | None:
    """Returns the step that a checkpoint's folder is named after; None: no such name."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits != name and digits.isdecimal() else None


def _estimate(trainer: lightning.Trainer) -> int:
    """Returns the bytes of what trains, in float32, with two moments and DeepSpeed's own copy."""
    count: Callable[[Any], int] = lambda parameter: getattr(parameter, "ds_numel", parameter.numel())  # noqa: E731
    return 16 * sum(count(parameter) for parameter in trainer.lightning_module.parameters() if parameter.requires_grad)
