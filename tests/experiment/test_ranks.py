"""Processes in place of ranks: how a run of several ends, whichever of them ends it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import harness
from harness import config
from harness.compose import compose_config
from harness.errors import UserError
from harness.experiment import ranks
from harness.experiment.failure import Failure, first, is_lost_peer, last_lines, path_of, read_all, report
from harness.experiment.folder import RunFolder

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")
ROOT = Path(harness.__file__).parent.parent
RANK = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
(folder / f"pid_{rank}").write_text(str(os.getpid()))

def fail(kind, message):
    from harness import errors
    from harness.experiment.failure import Failure, write
    from harness.experiment.folder import RunFolder
    code = 2 if kind == "UserError" else 1
    trace = f"Traceback\\n  in step 7\\n{kind}: {message}\\n"
    reason = f"{kind}: {message}"
    write(RunFolder(folder), Failure(rank=rank, status="failed", code=code, reason=reason, message=message,
                                     trace=trace, at=time.time(), lost_peer="peer" in message))
    sys.exit(code)

"""


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    config.save(compose_config(TWO), folder.config)
    folder.begin_attempt()
    return folder


@pytest.fixture
def supervised(folder, tmp_path, monkeypatch, make_config):
    """Runs two ranks of a given body and returns the exit code and the seconds it took."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(ranks, "_SETTLE_S", 1.0)
    monkeypatch.setattr(ranks, "_STOP_S", 1.0)

    def run(body: str) -> tuple[int, float]:
        script = tmp_path / "rank.py"
        script.write_text(RANK + textwrap.dedent(body))
        monkeypatch.setattr(ranks, "_COMMAND", (sys.executable, str(script)))
        began = time.monotonic()
        code = ranks.supervise(folder, make_config(*TWO), ranks.places_here(2, 1), 0.0)
        return code, time.monotonic() - began

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(folder):
    return [int(path.read_text()) for path in folder.path.glob("pid_*")]


def test_ranks_get_their_place_and_only_the_first_one_the_console(supervised, folder, capfd):
    code, _ = supervised(
        """
        import json, socket
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR".split()
        print("rank", *(os.environ[name] for name in names), flush=True)
        print("warning", file=sys.stderr)
        if rank == 0:
            listener = socket.socket(fileno=int(os.environ["HARNESS_LISTENER"]))
            assert listener.getsockname() == ("127.0.0.1", int(os.environ["MASTER_PORT"]))
            assert listener.accept()[0].recv(2) == b"hi"
        else:
            socket.create_connection(("127.0.0.1", int(os.environ["MASTER_PORT"]))).send(b"hi")
        """
    )
    output = capfd.readouterr()
    assert code == 0, output.err
    assert output.out == "rank 0 0 2 2 0 127.0.0.1\n" and output.err == "warning\n"
    log = (folder.path / "ranks" / "rank_1.log").read_text()
    assert sorted(log.splitlines()) == ["rank 1 1 2 2 0 127.0.0.1", "warning"]
    assert read_all(folder) == []


@pytest.mark.parametrize(("own", "expected"), [(None, "32"), ("3", "3")])
def test_ranks_share_the_cores_unless_told_otherwise(supervised, capfd, monkeypatch, own, expected):
    monkeypatch.setattr(ranks, "usable", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    code, _ = supervised('print(os.environ["OMP_NUM_THREADS"], flush=True)')
    assert code == 0 and capfd.readouterr().out == f"{expected}\n"


def test_the_rank_that_failed_is_shown_and_the_other_one_ended(supervised, folder, capfd):
    code, seconds = supervised('fail("ValueError", "boom") if rank == 1 else time.sleep(600)')
    assert code == 1 and seconds < 20
    lines = capfd.readouterr().err.splitlines()
    shown = ["error: rank 1 failed first: ValueError: boom", "Traceback", "  in step 7", "ValueError: boom"]
    assert [*shown, f"its log: {folder.path / 'ranks' / 'rank_1.log'}"] == lines[:5]
    assert not any(map(is_alive, pids(folder)))
    summary = json.loads(folder.summary.read_text())
    assert (summary["status"], summary["error"]) == ("failed", "rank 1: ValueError: boom")
    assert folder.read_status()["state"] == "failed"


def test_a_rank_that_hangs_is_killed_with_its_workers_where_another_was(supervised, folder, capfd):
    """As one that waits in a collective operation for one that ran out of memory."""
    code, seconds = supervised(
        """
        if rank == 1:
            print("allocating")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if (worker := os.fork()) == 0:
            time.sleep(600)
        (folder / "pid_worker").write_text(str(worker))
        time.sleep(600)
        """
    )
    assert code == 1 and seconds < 20
    lines = capfd.readouterr().err.splitlines()
    killed = "killed by SIGKILL (out of host memory, or by hand)"
    assert lines[:2] == [f"error: rank 1 failed first: {killed}", "allocating"]
    time.sleep(0.2)
    assert len(pids(folder)) == 3 and not any(map(is_alive, pids(folder)))
    assert json.loads(folder.summary.read_text())["error"] == f"rank 1: {killed}"


def test_a_mistake_of_the_users_is_one_line_whoever_found_it(supervised, folder, capfd):
    code, _ = supervised('fail("UserError", "data.train=x: no such file")')
    assert code == 2
    assert capfd.readouterr().err.splitlines() == ["error: data.train=x: no such file"]


def test_a_mistake_that_one_rank_finds_names_it(supervised, capfd):
    code, _ = supervised('fail("UserError", "row 7 is damaged") if rank == 1 else fail("RuntimeError", "peer is gone")')
    assert code == 2
    assert capfd.readouterr().err.splitlines() == ["error: rank 1: row 7 is damaged"]


def test_the_first_rank_can_be_the_one_that_fails(supervised, folder, capfd):
    code, _ = supervised(
        """
        if rank == 0:
            fail("ValueError", "boom")
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    assert code == 1
    assert capfd.readouterr().err.startswith("error: rank 0 failed first: ValueError: boom")


def test_a_failure_of_another_node_ends_the_ranks_of_this_one(supervised, folder, capfd):
    code, _ = supervised(
        """
        if rank == 0:
            os.environ["RANK"], rank = "5", 5
            try:
                fail("ValueError", "boom")
            except SystemExit:
                pass
        time.sleep(600)
        """
    )
    assert code == 1
    error = capfd.readouterr().err
    assert error.startswith("error: rank 5 failed first: ValueError: boom\nits log: ") and "step 7" not in error


SUPERVISOR = """
import sys
from pathlib import Path
from harness import registry
from harness.config import load
from harness.experiment import ranks
from harness.experiment.folder import RunFolder
registry.load()
folder = RunFolder(Path(sys.argv[1]))
ranks._COMMAND = (sys.executable, sys.argv[2])
sys.exit(ranks.supervise(folder, load(folder.config), ranks.places_here(2, 1), 0.0))
"""
WAITING = """
from harness.experiment.rank import end_with_parent
end_with_parent(signal.SIGKILL)
signal.signal(signal.SIGTERM, signal.default_int_handler)
(folder / f"ready_{rank}").touch()
try:
    time.sleep(600)
except KeyboardInterrupt:
    with (folder / f"interrupted_{rank}").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    sys.exit(130)
"""


@pytest.fixture
def supervisor(folder, tmp_path):
    """A process of its own that waits for two ranks, which wait to be interrupted."""
    (tmp_path / "rank.py").write_text(RANK + WAITING)
    (tmp_path / "supervisor.py").write_text(SUPERVISOR)
    command = [sys.executable, str(tmp_path / "supervisor.py"), str(folder.path), str(tmp_path / "rank.py")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(folder.path.glob("ready_*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_rank_once(supervisor, folder, number):
    """Though a terminal signals the whole process group."""
    os.killpg(supervisor.pid, number)
    assert supervisor.wait(timeout=60) == 128 + number
    assert [(folder.path / f"interrupted_{rank}").read_text() for rank in (0, 1)] == ["x", "x"]
    assert folder.read_status()["state"] == "preempted" and folder.read_status()["exit_reason"] == number.name


def test_no_rank_outlives_who_started_it(supervisor, folder):
    supervisor.kill()
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids(folder))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(pids(folder)) == 2


def failure(rank, at, reason="ValueError: boom", lost_peer=False):
    return Failure(rank=rank, status="failed", code=1, reason=reason, message=reason, at=at, lost_peer=lost_peer)


def test_the_cause_is_the_earliest_failure_that_is_no_consequence():
    assert first([]) is None
    lost = failure(0, 1.0, "RuntimeError: Connection closed by peer", lost_peer=True)
    assert first([lost, failure(1, 2.0), failure(2, 3.0, "KeyError: 7")]).rank == 1
    assert first([failure(0, 2.0), failure(1, 1.0)]).rank == 0
    assert first([lost]) is lost


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:94, remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("data.train=gloo.jsonl: no such file"), False),
    ],
)
def test_an_error_of_communication_is_known_by_its_words(error, is_lost):
    assert is_lost_peer(error) is is_lost


def test_the_first_report_of_a_rank_stands_and_an_interruption_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    report(folder, 0, KeyboardInterrupt())
    assert read_all(folder) == []
    report(folder, 1, ValueError("boom"))
    report(folder, 1, RuntimeError("gloo"))
    (found,) = read_all(folder)
    assert (found.reason, found.code, found.lost_peer) == ("ValueError: boom", 1, False)
    assert found.trace.endswith("ValueError: boom\n") and path_of(folder, 1).is_file()


def test_a_long_log_is_cut():
    assert last_lines("a\nb\n") == "a\nb"
    assert last_lines("\n".join(map(str, range(99)))).splitlines()[:2] == ["...", "69"]
