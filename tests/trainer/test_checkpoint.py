import errno
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from harness.trainer import durable
from harness.trainer.checkpoint import FILE, Checkpointer, NotSavedError


class Saver:
    """Hands a tensor to the checkpointer where Lightning's trainer hands over its state."""

    is_global_zero = True

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.holder = checkpointer.holder
        self.weights = torch.zeros(1000)

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        self.weights += 1
        self.holder.save_checkpoint({"weights": self.weights}, path)


@pytest.fixture(params=[False, True], ids=["at once", "background"])
def checkpointer(tmp_path, request):
    made = Checkpointer(tmp_path, keep=2, in_background=request.param)
    yield made
    made.close()


def save(checkpointer, saver, step, best=False):
    checkpointer.save(saver, step, best=best)
    saver.weights += 100
    checkpointer.wait()
    saver.weights -= 100


def steps(checkpointer):
    return sorted(path.name for path in checkpointer.folder.glob("*") if not path.is_symlink())


def test_keeps_the_newest_and_the_best(checkpointer):
    saver = Saver(checkpointer)
    for step in (1, 2, 3, 4):
        save(checkpointer, saver, step, best=step == 1)
        if checkpointer.in_background:
            assert torch.load(checkpointer.path_of("last"))["weights"].eq(step).all(), "of the step, not of later"
    assert steps(checkpointer) == ["step_1", "step_3", "step_4"]
    assert (checkpointer.step_of("last"), checkpointer.step_of("best")) == (4, 1)
    assert checkpointer.path_of("last") == checkpointer.folder.resolve() / "step_4" / FILE
    assert [checkpointer.fault(step) for step in (1, 3, 4)] == [None] * 3
    assert checkpointer.saves.saved == 4 and checkpointer.saves.failed == 0
    assert checkpointer.figures().keys() == {"perf/save_stall_s", "perf/save_write_s"}
    assert checkpointer.figures() == {}


def test_the_background_writes_the_same_bytes(tmp_path):
    contents = []
    for background in (False, True):
        checkpointer = Checkpointer(tmp_path / str(background), keep=2, in_background=background)
        checkpointer.save(Saver(checkpointer), 1, best=False)
        checkpointer.close()
        contents.append({path.name: path.read_bytes() for path in (checkpointer.folder / "step_1").iterdir()})
    assert contents[0] == contents[1] and contents[0].keys() == {FILE, "manifest.json"}


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    checkpointer, gate, written = Checkpointer(tmp_path, keep=2, in_background=True), threading.Event(), []

    def slow(state, path):
        gate.wait(10)
        written.append(path.parent.name)
        return save_now(state, path)

    save_now = durable.save
    monkeypatch.setattr(durable, "save", slow)
    saver = Saver(checkpointer)
    checkpointer.save(saver, 1, best=False)
    checkpointer.poll()
    assert written == [] and steps(checkpointer) == []
    threading.Timer(0.05, gate.set).start()
    checkpointer.save(saver, 2, best=False)
    assert checkpointer.step_of("last") in (1, 2)
    checkpointer.close()
    assert written == [".step_1", ".step_2"] and steps(checkpointer) == ["step_1", "step_2"]


def full(state, path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_ends_the_run_at_the_next_boundary(checkpointer, monkeypatch):
    saver = Saver(checkpointer)
    save(checkpointer, saver, 1)
    monkeypatch.setattr(durable, "save", full)
    message = r"NO CHECKPOINT of step 2: No space left on device; checkpoints/last is step 1 \(trainer.on_save_error"
    with pytest.raises(NotSavedError, match=message):
        save(checkpointer, saver, 2)
    assert steps(checkpointer) == ["step_1"] and checkpointer.fault(1) is None


def test_a_save_that_fails_is_counted_where_the_run_goes_on(checkpointer, monkeypatch, caplog):
    checkpointer.goes_on, saver = True, Saver(checkpointer)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "save", full)
        save(checkpointer, saver, 1)
    assert steps(checkpointer) == [] and checkpointer.saves.failed == 1
    assert "NO CHECKPOINT of step 1: No space left on device; there is none before it; training goes on" in caplog.text
    save(checkpointer, saver, 2)
    assert steps(checkpointer) == ["step_2"]


def test_a_disk_without_room_is_seen_before_it_is_full(checkpointer, monkeypatch, caplog):
    checkpointer.goes_on = True
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    save(checkpointer, Saver(checkpointer), 1)
    assert "the disk has 1.0 MiB left, and 4.0 are needed" in caplog.text and steps(checkpointer) == []


class Parts:
    """A trainer whose ranks all write; one of them fails."""

    is_global_zero = True
    strategy = type("Strategy", (), {"broadcast": staticmethod(lambda value: value)})
    lightning_module = torch.nn.Linear(10, 10)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        path.mkdir(parents=True)
        (path / "rank_0").write_bytes(b"part")
        if self.error is not None:
            raise self.error


def test_parts_of_all_ranks_are_one_checkpoint(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2, parts=True, goes_on=True)
    checkpointer.save(Parts(None), 1, best=True)
    assert checkpointer.fault(1) is None and checkpointer.step_of("best") == 1
    checkpointer.save(Parts(CheckpointException("disk full", {1: (OSError("disk full"), None)})), 2, best=False)
    assert steps(checkpointer) == ["step_1"] and checkpointer.saves.failed == 1
    with pytest.raises(OSError, match="one rank alone"):
        checkpointer.save(Parts(OSError("one rank alone")), 3, best=False)
    checkpointer.clean()
    assert not list(checkpointer.folder.glob(".*"))


def test_saving_a_step_again_replaces_it(checkpointer):
    saver = Saver(checkpointer)
    save(checkpointer, saver, 1)
    save(checkpointer, saver, 1, best=True)
    assert checkpointer.step_of("best") == checkpointer.step_of("last") == 1 and checkpointer.fault(1) is None


def test_what_a_killed_process_left_is_removed_or_put_back(checkpointer):
    save(checkpointer, Saver(checkpointer), 1)
    (checkpointer.folder / ".step_2").mkdir()
    (checkpointer.folder / ".last").symlink_to("step_2")
    (checkpointer.folder / "step_1").rename(checkpointer.folder / ".old_step_1")
    checkpointer.clean()
    assert sorted(path.name for path in checkpointer.folder.iterdir()) == ["last", "step_1"]
    assert checkpointer.fault(1) is None


def test_steps_that_run_again_and_damaged_ones_are_replaced_when_there_is_a_new_one(checkpointer):
    saver = Saver(checkpointer)
    for step in (1, 2, 3):
        checkpointer.keep = 9
        save(checkpointer, saver, step, best=step == 3)
    (checkpointer.folder / "step_3" / FILE).unlink()
    assert checkpointer.candidates() == [3, 2, 1]
    checkpointer.go_on_from(2, [3])
    assert steps(checkpointer) == ["step_1", "step_2", "step_3"]
    assert checkpointer.step_of("best") is None and checkpointer.step_of("last") == 2
    save(checkpointer, saver, 3)
    save(checkpointer, saver, 4)
    assert [checkpointer.fault(step) for step in (1, 2, 3, 4)] == [None] * 4


def test_nothing_saved_means_no_step(checkpointer):
    assert checkpointer.step_of("last") is None and checkpointer.candidates() == []
