"""The report as a run of W&B, read back with its own reader."""

import json
import os
import subprocess
import sys

import pytest

from harness.report.__main__ import main


@pytest.mark.slow
def test_table_and_files_are_an_artifact(sweep, tmp_path):
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "harness.report", "--no-pictures", "--wandb", "p", str(sweep)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (record,) = (sweep / "wandb").glob("offline-run-*/run-*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [json.loads(line) for line in lines]
    (run,) = [item["run"] for item in found if item["type"] == "run"]
    assert (run["project"], run["run_group"], run["job_type"]) == ("p", "study", "report")
    artifacts = [item["artifact"] for item in found if item["type"] == "artifact"]
    (report,) = [artifact for artifact in artifacts if artifact["type"] == "report"]
    paths = {entry["path"] for entry in report["manifest"]["contents"]}
    assert report["name"] == "report_study" and paths == {"report.csv", "report.html"}


def test_a_missing_package_is_named(sweep, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--no-pictures", "--wandb", "p", str(sweep)]) == 2
    assert "wandb is not installed" in capsys.readouterr().err
