import gzip
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UserError
from harness.logging.run_info import RunInfo
from harness.logging.wandb import WandbConfig, WandbMode, answers, build, choose_mode, has_key

KEY = "0123456789abcdef" * 2 + "01234567"
RUN = """
from pathlib import Path
from harness.logging.run_info import RunInfo
from harness.logging.setup import setup_logging
from harness.logging.tracker import finish, log_row
from harness.logging.wandb import WandbConfig, build
folder = Path(FOLDER)
setup_logging(folder, 0)
for run_id in ("aaaa1111", "bbbb2222"):
    config = {"tuner": {"name": "lora", "rank": 8}, "data": {"val": None}}
    run = RunInfo(folder=folder, run_id=run_id, name="lora r8", group="study", tags=["tiny", "lora"], config=config)
    loggers = build(WandbConfig(project="p", tags=["mine", "lora"]), run)
    log_row(loggers, {"step": 5, "train/loss": 0.2})
    log_row(loggers, {"step": 10, "train/loss": 0.1, "val/loss": float("nan")})
    finish(loggers, 3, {"best/val/loss": 0.25})
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials or settings of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home))
    return home


class FakeServer(http.server.ThreadingHTTPServer):
    """As much of the W&B server as an online run needs; keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def do_GET(self) -> None:
        self.answer({}, 404)

    def do_PUT(self) -> None:
        self.body()
        self.answer({})

    def do_POST(self) -> None:
        content = json.loads(self.body() or b"{}")
        if self.path == "/graphql":
            self.answer({"data": self.graphql(content["query"], content.get("variables") or {})})
            return
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if stream:
            lines = content.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history.setdefault(stream[1], []).extend(json.loads(line) for line in lines)
            if content.get("complete"):
                self.server.exit_codes[stream[1]] = content["exitcode"]
        self.answer({})

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        user = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        if "upsertBucket" in query:
            name = variables["name"]
            self.server.runs.setdefault(name, {}).update({k: v for k, v in variables.items() if v is not None})
            project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
            bucket = {"id": "MQ==", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/put"} for name in variables.get("files") or []]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "serverInfo" in query:
            return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99"}, "features": []}, "viewer": user}
        if "viewer" in query:
            return {"viewer": user}
        return {"model": {"bucket": self.bucket(variables.get("name", ""))}}

    def bucket(self, name: str) -> dict[str, Any] | None:
        """What is known of a run that goes on."""
        if name not in self.server.runs:
            return None
        history = self.server.history.get(name, [])
        tail = {"historyTail": json.dumps([json.dumps(row) for row in history[-1:]]), "eventsTail": "[]"}
        counts = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
        empty = {"summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
        return {"id": "MQ==", "name": name, **tail, **counts, **empty}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def settings(home: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    wandb = pytest.importorskip("wandb")
    settings = SimpleNamespace(mode="online", api_key=KEY, base_url=server.url)
    monkeypatch.setattr(wandb, "setup", lambda: SimpleNamespace(settings=settings))
    return settings


def test_auto_is_online_with_a_key_and_a_server_that_answers(settings: SimpleNamespace) -> None:
    assert choose_mode(WandbMode.auto) is WandbMode.online
    assert choose_mode(WandbMode.online) is WandbMode.online


def test_auto_is_offline_without_a_key_and_says_so_once(
    settings: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    settings.api_key = None
    assert choose_mode(WandbMode.auto) is WandbMode.offline
    assert caplog.messages == [
        f"W&B: offline, because there is no key for {settings.base_url}; send the run later with `wandb sync`"
    ]


def test_auto_is_offline_when_the_server_is_out_of_reach_and_says_so_once(
    settings: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    settings.base_url = "http://127.0.0.1:1"
    assert choose_mode(WandbMode.auto) is WandbMode.offline
    assert len(caplog.messages) == 1
    assert "http://127.0.0.1:1 did not answer within 3 s" in caplog.text
    assert KEY not in caplog.text


def test_auto_follows_wandbs_own_settings(settings: SimpleNamespace) -> None:
    settings.mode = "disabled"
    assert choose_mode(WandbMode.auto) is WandbMode.disabled


def test_online_without_a_key_is_refused(settings: SimpleNamespace) -> None:
    settings.api_key = None
    with pytest.raises(UserError, match=r"logging\.mode=online: there is no key for http.*run `wandb login`"):
        choose_mode(WandbMode.online)


def test_online_without_a_server_is_refused(settings: SimpleNamespace) -> None:
    settings.base_url = "http://127.0.0.1:1"
    with pytest.raises(UserError, match=r"logging\.mode=online: http://127\.0\.0\.1:1 did not answer"):
        choose_mode(WandbMode.online)


@pytest.mark.parametrize("mode", [WandbMode.offline, WandbMode.disabled])
def test_offline_and_disabled_ask_nobody(mode: WandbMode) -> None:
    assert choose_mode(mode) is mode


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_a_key_in_a_netrc_file_counts_for_its_host_only(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = SimpleNamespace(api_key=None, base_url="https://wandb.example:8080")
    assert not has_key(settings)
    (home / name).write_text(f"machine wandb.example login user password {KEY}\n")
    if name == "elsewhere":
        monkeypatch.setenv("NETRC", str(home / name))
    assert has_key(settings)
    assert not has_key(SimpleNamespace(api_key=None, base_url="https://other.example"))


def test_a_damaged_netrc_file_is_an_error_without_the_key(home: Path) -> None:
    (home / ".netrc").write_text(f"machine a login b password {KEY}\nmachina c\n")
    with pytest.raises(UserError, match=r"\.netrc:\d+: .*mend the file") as error:
        has_key(SimpleNamespace(api_key=None, base_url="https://a"))
    assert KEY not in str(error.value)


def test_any_status_is_an_answer(server: FakeServer) -> None:
    assert answers(server.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no url", "http://"])
def test_a_refusal_is_none(url: str) -> None:
    assert not answers(url)


def test_a_server_that_accepts_and_stays_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3)
        assert time.monotonic() - start < 1.5


def test_a_missing_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging=wandb: wandb is not installed .*'\.\[wandb\]'"):
        build(WandbConfig(), RunInfo(folder=tmp_path, run_id="abc", name="run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"project": ""}, r"logging\.project='': must name"),
        ({"tags": ["x" * 65]}, r"logging\.tags=x+: W&B takes tags of 1 to 64"),
        ({"tags": [""]}, r"logging\.tags=: W&B takes tags of 1 to 64"),
    ],
)
def test_values_that_wandb_refuses_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WandbConfig(**settings)


def test_other_ranks_start_no_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.utilities import rank_zero_only

    from harness.logging.tracker import finish, log_row

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "init", lambda **settings: pytest.fail("wandb.init on rank 1"))
    loggers = build(WandbConfig(), RunInfo(folder=tmp_path, run_id="abc", name="run"))
    log_row(loggers, {"step": 1, "train/loss": 1.0})
    finish(loggers, 0)


def run_script(folder: Path, script: str = RUN, code: int = 0, **environment: str) -> None:
    pytest.importorskip("wandb")
    script = script.replace("FOLDER", repr(str(folder)))
    process = subprocess.run([sys.executable, "-W", "error", "-c", script], env=os.environ | environment, text=True)
    assert process.returncode == code


def records(path: Path) -> list[dict[str, Any]]:
    """Reads a run's binary file with W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def of_type(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in found if record["type"] == kind]


@pytest.mark.slow
def test_an_offline_run_has_everything(home: Path, tmp_path: Path) -> None:
    run_script(tmp_path)
    # Two runs of one process are two runs in W&B.
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["aaaa1111", "bbbb2222"]
    assert "W&B: offline, because there is no key" in (tmp_path / "train.log").read_text()

    found = records(folders[0])
    (run,) = of_type(found, "run")
    assert {key: run[key] for key in ("run_id", "project", "display_name", "run_group", "job_type", "tags")} == {
        "run_id": "aaaa1111",
        "project": "p",
        "display_name": "lora r8",
        "run_group": "study",
        "job_type": "train",
        "tags": ["tiny", "lora", "mine"],
    }
    config = run["config"]["update"]
    assert (config["tuner"], config["data"]) == ({"name": "lora", "rank": 8}, {"val": None})
    rows = [record["item"] for record in of_type(found, "history")]
    shown = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert shown == [
        {"train/loss": 0.2, "trainer/global_step": 5},
        {"train/loss": 0.1, "val/loss": "NaN", "trainer/global_step": 10},
    ]
    assert ("*", "trainer/global_step") in [
        (metric.get("glob_name"), metric.get("step_metric")) for metric in of_type(found, "metric")
    ]
    assert any("best" in json.dumps(summary["update"]) for summary in of_type(found, "summary"))
    # W&B adds the seconds where there is a whole one.
    assert [item["exit_code"] for item in of_type(found, "exit")] == [3]


@pytest.mark.slow
def test_an_online_run_arrives_and_its_key_is_in_no_file(home: Path, tmp_path: Path, server: FakeServer) -> None:
    run_script(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert sorted(server.runs) == ["aaaa1111", "bbbb2222"]
    assert server.runs["aaaa1111"]["groupName"] == "study"
    assert [row["trainer/global_step"] for row in server.history["aaaa1111"]] == [5, 10]
    assert server.exit_codes == {"aaaa1111": 3, "bbbb2222": 3}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


ATTEMPT = """
import os, signal, time
from pathlib import Path
from harness.logging.run_info import RunInfo
from harness.logging.tracker import finish, log_row
from harness.logging.wandb import WandbConfig, build
run = RunInfo(folder=Path(FOLDER), run_id="aaaa1111", name="lora r8")
loggers = build(WandbConfig(project="p"), run)
for step in range(1, LAST + 1):
    log_row(loggers, {"step": step, "train/loss": 1 / step})
if LAST < 9:
    time.sleep(WAIT)
    os.kill(os.getpid(), signal.SIGKILL)
finish(loggers, 0)
"""


def kill_and_go_on(folder: Path, **environment: str) -> None:
    """Kills a run behind step 5; the next attempt logs again what there was up to a checkpoint, and goes on to 9."""
    killed = ATTEMPT.replace("LAST", "5").replace("WAIT", "3" if environment else "0")
    run_script(folder, killed, -signal.SIGKILL, **environment)
    run_script(folder, ATTEMPT.replace("LAST", "9").replace("WAIT", "0"), **environment)


@pytest.mark.slow
def test_a_server_gets_each_step_once_though_a_killed_run_sends_some_again(
    home: Path, tmp_path: Path, server: FakeServer
) -> None:
    kill_and_go_on(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert list(server.runs) == ["aaaa1111"]
    assert [row["trainer/global_step"] for row in server.history["aaaa1111"]] == list(range(1, 10))
    assert [row["_step"] for row in server.history["aaaa1111"]] == list(range(1, 10))


@pytest.mark.slow
def test_the_record_to_sync_has_each_step_once_after_a_kill(home: Path, tmp_path: Path) -> None:
    kill_and_go_on(tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert len(list((tmp_path / "wandb" / "superseded").iterdir())) == 1
    rows = [record["item"] for record in of_type(records(folder), "history")]
    assert [row["trainer/global_step"] for row in rows] == list(range(1, 10))
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (shown.stdout + shown.stderr).count("aaaa1111") == 1


def test_rows_that_the_server_has_are_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from harness.logging.wandb_logger import StepLogger

    sent: list[tuple[dict[str, float], int]] = []
    experiment = SimpleNamespace(starting_step=6, log=lambda row, step, commit: sent.append((row, step)))
    monkeypatch.setattr(StepLogger, "experiment", experiment)
    logger = StepLogger(id="a", save_dir="x")
    for step in range(4, 8):
        logger.log_metrics({"train/loss": 0.5}, step)
    assert sent == [({"train/loss": 0.5, "trainer/global_step": step}, step) for step in (6, 7)]


@pytest.mark.slow
def test_disabled_records_nothing(home: Path, tmp_path: Path) -> None:
    run_script(tmp_path, WANDB_MODE="disabled")
    assert not list(tmp_path.rglob("*.wandb"))
