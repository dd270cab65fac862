"""Secrets stay out of files, text stays text in reports, and nothing of a config reaches a shell."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent.parent
SHELLS = {
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "asyncio": {"create_subprocess_shell"},
}
SECRETS = {
    name: f"secret{number:02d}0123456789abcdef0123456789abcdef"
    for number, name in enumerate(
        (
            "WANDB_API_KEY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "SWANLAB_API_KEY",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
        )
    )
}
RUN = (
    "data.train_rows=16",
    "data.held_out=2",
    "data.workers=0",
    "trainer.batch_size=4",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
)


def shell_calls(source: str) -> list[str]:
    """Returns the calls in Python source that hand text to a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node)
        owner, _, name = ast.unparse(node.func).rpartition(".")
        if name in SHELLS.get(owner, ()):
            found.append(text)
        if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords):
            found.append(text)
        # A program and its arguments are a list; text would be split, or handed on.
        if owner == "subprocess" and node.args and isinstance(node.args[0], ast.JoinedStr | ast.Constant | ast.BinOp):
            found.append(text)
    return found


def test_a_call_of_a_shell_is_seen():
    calls = ("os.system(x)", "subprocess.run(x, shell=True)", "subprocess.run(f'rm {x}')", "subprocess.getoutput('ls')")
    assert all(map(shell_calls, calls))
    assert shell_calls("subprocess.run(['ls', x], shell=False)") == []


@pytest.mark.parametrize("folder", ["harness", "benchmarks", "sweeps"])
def test_nothing_is_handed_to_a_shell(folder):
    calls = {path.name: shell_calls(path.read_text(encoding="utf-8")) for path in (ROOT / folder).rglob("*.py")}
    assert {name: found for name, found in calls.items() if found} == {}


def call(folder, *command):
    environment = {**os.environ, **SECRETS, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    environment |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def told(folder, done):
    """Returns what was printed, and the files below a folder, that hold a secret."""
    values = [value.encode() for value in SECRETS.values()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [str(path) for path in files if any(value in path.read_bytes() for value in values)]
    return names + [text for text in (done.stdout, done.stderr) if any(value.decode() in text for value in values)]


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["console", "wandb", "tensorboard"])
def test_keys_and_tokens_of_the_environment_are_in_no_file(tmp_path, logger):
    if logger != "console":
        pytest.importorskip(logger)
    run = tmp_path / "run"
    done = call(tmp_path, "harness", *RUN, f"logging={logger}", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert {"config.yaml", "environment.json", "train.log", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert told(tmp_path, done) == []
    report = call(tmp_path, "harness.report", str(run))
    assert report.returncode == 0, report.stderr
    assert told(tmp_path, report) == []


@pytest.mark.slow
def test_nor_are_they_after_an_error(tmp_path):
    done = call(tmp_path, "harness", *RUN, "tuner=full", "optim.lr=1e30", "trainer.log_every_steps=1")
    assert done.returncode == 1 and "DivergedError" in done.stderr
    assert told(tmp_path, done) == []


@pytest.mark.parametrize("key", ["logging.api_key", "+logging.token"])
def test_a_config_has_no_place_for_a_secret(tmp_path, key):
    done = call(tmp_path, "harness", "logging=wandb", f"{key}={SECRETS['WANDB_API_KEY']}")
    assert done.returncode == 2 and key.lstrip("+") in done.stderr
    assert list(tmp_path.rglob("*")) == []
