"""Fixtures of the doctor's tests: small files of rows and images, and the doctor run on them in this process."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.config import RunConfig
from harness.doctor import __main__ as command
from harness.doctor import machine
from harness.doctor.split import Split, read

WORKING = {
    "python": "3.11.0",
    "platform": "test",
    "torch": {"version": "2.13.0", "cuda": None, "gpus": [], "bf16": None, "warnings": []},
    "lightning": {"version": "2.6.6"},
    "torchvision": None,
    "packages": [],
    "cores": 2,
    "memory_gib": 8.0,
    "memory_available_gib": 4.0,
    "outputs": "outputs",
    "disk_free_gib": 10.0,
}
"""A machine on which all is well."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a run of the doctor left."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "doctor.json").read_text())


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes rows, or lines as they stand, to a JSONL file and returns its path."""

    def write(*rows: Any, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., str]:
    """Writes a PNG of noise and returns its name; the same seed gives the same bytes."""

    def write(name: str, width: int = 64, height: int = 64, seed: int = 0) -> str:
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        return name

    return write


@pytest.fixture
def damage(tmp_path: Path) -> Callable[[str], None]:
    """Destroys the middle of an image file, so that header and end still look well."""

    def destroy(name: str) -> None:
        content = bytearray((tmp_path / name).read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = bytes(200)
        (tmp_path / name).write_bytes(bytes(content))

    return destroy


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Makes a raw row: a question about its images, and an answer."""

    def make(answer: str = "a cat", *images: str, **more: Any) -> dict[str, Any]:
        question = "<image>" * len(images) + "What is it?"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "images": list(images), **more}

    return make


@pytest.fixture
def read_splits(make_config, processor, tmp_path: Path) -> Callable[..., tuple[RunConfig, list[Split]]]:
    """Reads the splits that overrides name, without a cache."""

    def make(*overrides: str) -> tuple[RunConfig, list[Split]]:
        config = make_config("data=files", "data.cache_dir=null", *overrides)
        return config, read(config, processor)

    return make


@pytest.fixture
def doctor(tmp_path: Path, capsys, monkeypatch) -> Iterator[Callable[..., Told]]:
    """Runs the command in this process, on a machine on which all is well."""
    monkeypatch.setattr(machine, "measure", lambda: json.loads(json.dumps(WORKING)))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "report"

    def run(*arguments: str) -> Told:
        capsys.readouterr()
        code = command.main(["--out", str(folder), *arguments])
        out, err = capsys.readouterr()
        return Told(code, out, err, folder)

    yield run
    logging.captureWarnings(False)
