import os
import subprocess
import sys
import time
from collections import namedtuple

import pytest
import torch

from harness.data.features import entry, store
from harness.data.features.store import Store

SHAPE = (8, 4, 32)
SIZE = entry.num_bytes(torch.empty(SHAPE))


def key(number):
    return f"{number:064x}"


def values(number):
    return torch.full(SHAPE, float(number))


@pytest.fixture
def make_store(tmp_path):
    """Makes the store of a run that began some seconds ago."""

    def make(entries=100.0, ago=60.0, tower="c3" * 32):
        made = Store(tmp_path, tower, int(entries * SIZE), time.time() - ago)
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def held(made):
    return {int(path.stem, 16) for path in made.folder.glob("*/*.feat")}


def test_finds_what_was_kept_and_nothing_else(make_store):
    made = make_store()
    assert made.write(key(1), values(1)) == SIZE
    assert made.write(key(1), values(1)) == 0
    assert torch.equal(made.read(key(1)), values(1))
    assert made.read(key(2)) is None
    assert make_store(tower="d4" * 32).read(key(1)) is None


def test_a_damaged_entry_is_deleted_and_can_be_kept_again(make_store):
    made = make_store()
    made.write(key(1), values(1))
    with open(made.path(key(1)), "r+b") as file:
        file.truncate(SIZE - 4)
    with pytest.raises(entry.DamagedError, match="not whole"):
        made.read(key(1))
    assert made.read(key(1)) is None
    assert made.write(key(1), values(1)) == SIZE


def test_what_was_used_longest_ago_makes_room(make_store):
    """The second run has read the first entry, which is the oldest."""
    first = make_store(entries=10, ago=1000)
    for number in range(10):
        first.write(key(number), values(number))
        os.utime(first.path(key(number)), (0, time.time() - 900 + number))
    second = make_store(entries=10, ago=10)
    assert second.read(key(0)) is not None
    assert second.write(key(10), values(10)) == SIZE
    assert held(second) == {0, *range(3, 11)}, "down to 90 % of the bound: two make room"
    assert int((second.root / "size").read_text()) == 9 * SIZE


def test_what_this_run_uses_stays_and_the_bound_holds(make_store):
    made = make_store(entries=3.5)
    assert [made.write(key(number), values(number)) for number in range(5)] == [SIZE, SIZE, SIZE, None, None]
    assert held(made) == {0, 1, 2}


def test_other_towers_count_and_go_first_when_they_are_old(make_store):
    old = make_store(entries=4, ago=1000, tower="d4" * 32)
    for number in range(4):
        old.write(key(number), values(number))
        os.utime(old.path(key(number)), (0, time.time() - 900))
    made = make_store(entries=4, ago=10)
    assert [made.write(key(number), values(number)) for number in range(4)] == [SIZE] * 4
    assert len(held(old)) + len(held(made)) <= 4


def test_the_disk_keeps_some_room(make_store, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(store.SPARE_BYTES + SIZE - 1))
    assert make_store().write(key(1), values(1)) is None


def test_a_lost_or_senseless_total_is_counted_anew(make_store):
    made = make_store(entries=3.5)
    for number in range(3):
        made.write(key(number), values(number))
    for text in ("", "x"):
        (made.root / "size").write_text(text)
        assert made.write(key(4), values(4)) is None
        assert int((made.root / "size").read_text()) == 3 * SIZE


def test_what_a_killed_process_left_is_removed(make_store):
    made = make_store(entries=0.5)
    made.path(key(1)).parent.mkdir(parents=True)
    left, current = (made.path(key(1)).with_suffix(f".{name}{entry.STAGED}") for name in ("left", "current"))
    for path in (left, current):
        path.touch()
    os.utime(left, (0, time.time() - 2 * store.ABANDONED_S))
    assert made.write(key(1), values(1)) is None
    assert not left.exists() and current.exists()


WRITER = """
import sys, torch
from pathlib import Path
from harness.data.features.entry import DamagedError
from harness.data.features.store import Store
store = Store(Path(sys.argv[1]), "c3" * 32, int(sys.argv[2]), 2e9 if sys.argv[3] == "evicts" else 0.0)
found = 0
for turn in range(3):
    for number in range(40):
        key = f"{number:064x}"
        if (features := store.read(key)) is not None:
            assert torch.equal(features, torch.full((8, 4, 32), float(number)))
            found += 1
        store.write(key, torch.full((8, 4, 32), float(number)))
print(found)
"""


@pytest.mark.parametrize(("entries", "kind"), [(100, "keeps"), (12, "evicts")])
def test_processes_write_read_and_evict_at_once(make_store, entries, kind):
    """Each takes what the others use for old, in the second case, and deletes it under them."""
    made = make_store()
    command = [sys.executable, "-c", WRITER, str(made.root), str(entries * SIZE), kind]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [int(process.communicate(timeout=60)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(held(made)) == 40 if kind == "keeps" else len(held(made)) <= 12
    assert kind == "evicts" or all(count >= 80 for count in found)
    assert not list(made.root.glob(f"**/*{entry.STAGED}"))
