"""The lock on compiled extensions: held by one, and by nobody who is dead."""

import os
import socket
import subprocess
import sys

import pytest
from torch.utils import cpp_extension

from harness.memory.strategy.build_lock import Baton, use


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_one_holds_it_until_it_is_given_back(path):
    first, second = Baton(path), Baton(path)
    assert first.try_acquire() and not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()
    assert not path.exists()


def test_that_of_a_killed_process_is_free(path, caplog):
    code = f"import os; from harness.memory.strategy.build_lock import Baton; Baton({str(path)!r}).try_acquire(); "
    process = subprocess.run([sys.executable, "-c", f"{code}os.kill(os.getpid(), 9)"])
    assert process.returncode == -9 and path.exists()
    baton = Baton(path)
    assert baton.try_acquire()
    assert "which was killed; removed" in caplog.text
    baton.release()


@pytest.mark.parametrize(
    "content",
    ["", f"{socket.gethostname()} {os.getpid()}", "elsewhere 4194303", "no number"],
    ids=["torch's own", "alive", "elsewhere", "another program's"],
)
def test_that_of_others_is_left_alone(path, content):
    path.write_text(content)
    assert not Baton(path).try_acquire() and path.read_text() == content


def test_torchs_compiler_takes_it(monkeypatch):
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    use()
    assert cpp_extension.FileBaton is Baton
