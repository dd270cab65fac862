from pathlib import Path

import pytest

from harness.trainer.checkpoint import FILE, Checkpointer


class Saver:
    """Saves a line of text where Lightning's trainer saves its state."""

    is_global_zero = True

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        path.parent.mkdir(parents=True)
        path.write_text(str(path))


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(tmp_path, keep=2)


def steps(checkpointer):
    return sorted(path.name for path in checkpointer.folder.glob("[!.]*") if not path.is_symlink())


def test_keeps_the_newest_and_the_best(checkpointer):
    for step in (1, 2, 3, 4):
        checkpointer.save(Saver(), step, best=step == 1)
    assert steps(checkpointer) == ["step_1", "step_3", "step_4"]
    assert (checkpointer.step_of("last"), checkpointer.step_of("best")) == (4, 1)
    assert checkpointer.path_of("last") == checkpointer.folder.resolve() / "step_4" / FILE


def test_a_save_that_dies_leaves_the_last_one_in_place(checkpointer):
    class Dies(Saver):
        def save_checkpoint(self, path: Path, weights_only: bool) -> None:
            super().save_checkpoint(path, weights_only)
            raise OSError("disk full")

    checkpointer.save(Saver(), 1, best=False)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save(Dies(), 2, best=False)
    assert steps(checkpointer) == ["step_1"] and checkpointer.step_of("last") == 1


def test_saving_a_step_again_replaces_it(checkpointer):
    checkpointer.save(Saver(), 1, best=False)
    checkpointer.save(Saver(), 1, best=True)
    assert checkpointer.step_of("best") == checkpointer.step_of("last") == 1


def test_nothing_saved_means_no_step(checkpointer):
    assert checkpointer.step_of("last") is None
