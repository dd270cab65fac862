import copy
import json
import subprocess
from pathlib import Path

import pytest

from harness import cores
from harness.doctor import machine, package

FINE = {
    "python": "3.11.0",
    "platform": "test",
    "torch": {"version": "2.13.0", "cuda": None, "gpus": [], "bf16": None, "warnings": []},
    "lightning": {"version": "2.6.6"},
    "torchvision": None,
    "packages": [],
    "cores": 2,
    "memory_gib": 8.0,
    "memory_available_gib": 4.0,
    "outputs": "/outputs",
    "disk_free_gib": 10.0,
}
GPU = {"name": "NVIDIA H200", "capability": "9.0", "memory_gib": 139.8, "free_gib": 120.0}


@pytest.fixture
def found() -> dict:
    return copy.deepcopy(FINE)


@pytest.fixture
def fake_lightning(tmp_path: Path, monkeypatch):
    """Puts a lightning of our own in front of the installed one, for child processes."""

    def write(code: str) -> None:
        (tmp_path / "lightning").mkdir()
        (tmp_path / "lightning" / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return write


def test_this_machine_is_looked_at_and_can_train(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    measured = machine.measure()
    assert measured["torch"]["version"] == torch.__version__
    assert len(measured["torch"]["gpus"]) == torch.cuda.device_count()
    assert measured["lightning"]["version"] == package.version("lightning")
    assert measured["cores"] >= 1
    assert 0 < measured["memory_available_gib"] <= measured["memory_gib"]
    assert measured["disk_free_gib"] > 0 and measured["outputs"] == str(tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()
    assert machine.problems(measured) == []
    machine.show(measured)
    assert "import lightning   works" in capsys.readouterr().out


def test_broken_torchvision_beside_lightning_is_named_with_the_remedy(fake_lightning, found):
    fake_lightning("raise RuntimeError('operator torchvision::nms does not exist')")
    found |= machine.probe() | {"torchvision": "0.26.0"}
    (problem,) = machine.problems(found)
    assert "lightning can not be imported: RuntimeError: operator torchvision::nms does not exist" in problem
    assert "pip uninstall torchvision" in problem and "torchvision 0.26.0 beside torch 2." in problem


def test_process_that_dies_in_the_import_leaves_what_torch_said(monkeypatch, found):
    line = json.dumps({"torch": FINE["torch"]})
    died = subprocess.CompletedProcess([], -11, f"{line}\n", "")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: died)
    probed = machine.probe()
    assert probed["torch"]["version"] == "2.13.0"
    assert probed["lightning"] == {"error": "the process died with exit code -11"}
    assert "install the versions of constraints.txt" in machine.problems(found | probed)[0]


def test_import_that_never_ends_is_given_up(monkeypatch):
    def hang(command, **_):
        raise subprocess.TimeoutExpired(command, 300, output=b'{"torch": {"version": "2.13.0"}}\n')

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert machine.probe() == {
        "torch": {"version": "2.13.0"},
        "lightning": {"error": "the process did not end in 300 s"},
    }


def test_broken_torch_is_the_problem_that_is_told(found):
    found["torch"] = {"error": "OSError: libcudart.so not found"}
    found["lightning"] = {"error": "OSError: libcudart.so not found"}
    assert machine.problems(found) == ["torch can not be imported: OSError: libcudart.so not found; install it anew"]


def test_gpus_are_listed_with_memory_and_bf16(found, capsys):
    found["torch"] |= {"cuda": "13.0", "gpus": [GPU, GPU], "bf16": True}
    machine.show(found)
    out = capsys.readouterr().out
    assert "GPU 1" in out and "NVIDIA H200, 120.0 of 139.8 GiB free, compute capability 9.0" in out
    assert "bf16" in out and "CUDA 13.0" in out


def test_gpu_without_bf16_is_told_what_to_use(found, capsys):
    found["torch"] |= {"cuda": "12.6", "gpus": [GPU], "bf16": False}
    machine.show(found)
    assert "no: use memory.precision=fp16 or fp32" in capsys.readouterr().out


def test_warning_of_an_unusable_driver_stands_beside_the_missing_gpu(found, capsys):
    found["torch"]["warnings"] = ["The NVIDIA driver on your system is too old"]
    machine.show(found)
    assert "none: training runs on the CPU; The NVIDIA driver on your system is too old" in capsys.readouterr().out


def test_limits_of_a_container_count(tmp_path, monkeypatch):
    for name, content in {"cpu.max": "150000 100000", "memory.max": str(2**30), "memory.current": str(2**29)}.items():
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    assert cores.usable() == 1
    assert machine._memory() == {"memory_gib": 1.0, "memory_available_gib": 0.5}
