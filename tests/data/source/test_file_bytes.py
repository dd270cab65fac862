import os
import pickle
from multiprocessing import get_context

import pytest

from harness.data.source import file_bytes
from harness.data.source.file_bytes import FileBytes
from harness.errors import UserError


def test_reads_spans_and_pickles_without_the_content(put):
    file = FileBytes.of(put("a", bytes(range(256)) * 1000))
    assert file.read(3, 7) == bytes([3, 4, 5, 6])
    again = pickle.loads(pickle.dumps(file))
    assert len(pickle.dumps(file)) < 1000 and again.read(255, 257) == bytes([255, 0])


def test_forked_processes_do_not_move_each_others_position(put):
    file = FileBytes.of(put("a", bytes(range(100))))
    assert file.read(0, 1) == b"\0"
    with get_context("fork").Pool(2) as pool:
        spans = [(i, i + 1) for i in range(100)]
        assert b"".join(pool.starmap(file.read, spans)) == bytes(range(100))


def test_a_file_that_changes_is_refused(put):
    path = put("a", "12345")
    file = FileBytes.of(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"a: changed since it was indexed; keep data files as they are"):
        file.read(0, 1)
    shrunk = FileBytes.of(path)
    assert shrunk.read(0, 1) == b"1"
    os.truncate(path, 2)
    with pytest.raises(UserError, match="changed since it was indexed"):
        shrunk.read(0, 5)
    os.unlink(path)
    with pytest.raises(UserError, match=r"a: can not be opened any more: No such file"):
        FileBytes(path, 9, 9).read(0, 1)


def test_few_files_are_held_open(put):
    files = [FileBytes.of(put(str(i), str(i))) for i in range(200)]
    before = len(os.listdir("/proc/self/fd"))
    assert [file.read(0, file.size) for file in files] == [str(i).encode() for i in range(200)]
    assert len(os.listdir("/proc/self/fd")) - before <= file_bytes._MAX_OPEN
