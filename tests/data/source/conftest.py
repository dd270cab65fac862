"""Fixtures of the source tests: files to read, and rows by number without their text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data.config import BboxScale
from harness.data.source.found import Found, Kind, find
from harness.data.source.open import Options
from harness.data.source.rows import Reading
from harness.data.source.spec import parse


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., str]:
    """Writes a file, with the folders above it, and returns its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options({}, tmp_path / "cache")


@pytest.fixture
def reading() -> Reading:
    return Reading(columns={}, bbox=BboxScale.none, root=None, max_pixels=10**6, cache=None, time_limit_s=1.0)


@pytest.fixture
def locate() -> Callable[[str], list[Found]]:
    def located(text: str) -> list[Found]:
        return find("data.train", parse("data.train", text))

    return located


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Saves rows as a `datasets` folder, or rows by split as several, and returns its path."""

    def save(rows: Any, name: str = "saved", features: Any = None) -> str:
        import datasets

        datasets.disable_progress_bars()
        path = tmp_path / name
        if isinstance(rows, list):
            datasets.Dataset.from_list(rows, features=features).save_to_disk(path)
        else:
            splits = {split: datasets.Dataset.from_list(part) for split, part in rows.items()}
            datasets.DatasetDict(splits).save_to_disk(path)
        return str(path)

    return save


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the hub: it has owner/name, with the configurations a and b and the splits train and test."""
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, split: str = "", **options: Any) -> Any:
        asked.append((path, name, split, options))
        if path != "owner/name":
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub\nmore")
        made = datasets.Dataset.from_list([{"query": f"{name} {split} {i}", "response": "r"} for i in range(5)])
        return made.to_iterable_dataset() if options.get("streaming") else made

    def names(path: str) -> list[str]:
        if path != "owner/name":
            raise ConnectionError("offline")
        return ["a", "b"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", names)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda path: ["train", "test"])
    return asked


@pytest.fixture
def of_kind() -> Callable[..., Found]:
    def make(kind: Kind, path: str, name: str = "") -> Found:
        return Found(kind, "data.train", name or path, path)

    return make
