"""Parquet files, saved `datasets` folders and the hub: read through `datasets`, memory-mapped, never decoded.

In the Arrow format rows come as they are stored, so an image is `{bytes, path}` and stays so until a worker decodes it.
Parquet and the hub are first copied into Arrow files below `data.cache_dir`, as parquet itself can not be read row by
row. No code of a data set's repository is run: `datasets` from version 4 on has no way to.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.row_error import RowError
from harness.data.source.found import Found
from harness.errors import UserError, reject

_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class ArrowTable:
    """Rows of a memory-mapped data set; pickles as the paths of its files."""

    name: str
    folder: Path
    digest: str
    dataset: Any
    """A `datasets.Dataset` in the Arrow format."""

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, index: int) -> Any:
        """Returns the row as its file has it; raises RowError where it can not be read."""
        return first_row(self.dataset[index], self.origin(index))

    def origin(self, index: int) -> str:
        """Returns `file.parquet[11]`."""
        return f"{self.name}[{index}]"


def first_row(rows: Any, origin: str) -> Any:
    """Returns the one row of an Arrow table or batch as Python objects.

    Raises:
        RowError: It holds what Python does not have.
    """
    try:
        return rows.to_pylist()[0]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, times out of range
        raise RowError(origin, "broken row", f"can not be read from Arrow ({error})") from error


def library() -> Any:
    """Returns the package `datasets`.

    Raises:
        UserError: It is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "parquet, saved data sets and the hub need the package datasets: pip install datasets"
        ) from error
    return datasets


def open_parquet(found: Found, cache: Path | None) -> ArrowTable:
    """Copies a parquet file into the cache and maps the copy.

    Raises:
        UserError: Not parquet, or no cache to copy it to.
    """
    datasets, folder = library(), _cache(found, cache)
    digest = parquet_digest(found)
    try:
        dataset = datasets.Dataset.from_parquet(found.path, cache_dir=folder)
    except Exception as error:  # of `datasets` and pyarrow, which share no base class
        raise unreadable(found, error) from error
    return _table(found, digest, dataset)


def open_saved(found: Found) -> ArrowTable:
    """Maps a folder that `save_to_disk` wrote."""
    datasets = library()
    try:
        dataset = datasets.Dataset.load_from_disk(found.path)
    except Exception as error:  # as above
        raise unreadable(found, error) from error
    content = hashlib.sha256((Path(found.path) / "state.json").read_bytes())
    # Not all of the folder: `datasets` keeps what `map` made of it there too.
    for path in (Path(file["filename"]) for file in dataset.cache_files):
        content.update(f"{path.name} {path.stat().st_size}\n".encode())
    return _table(found, content.hexdigest(), dataset)


def open_hub(found: Found, cache: Path | None) -> ArrowTable:
    """Downloads a split and maps it.

    Raises:
        UserError: The hub does not give it, or no cache to keep it in.
    """
    dataset = load_hub(found, cache_dir=_cache(found, cache))
    return _table(found, hub_digest(found, dataset), dataset)


def load_hub(found: Found, **options: Any) -> Any:
    """Calls `datasets.load_dataset`; what it raises becomes one message."""
    datasets = library()
    try:
        return datasets.load_dataset(found.path, name=found.subset, split=found.split or "train", **options)
    except Exception as error:  # as above, and of the network
        raise no_hub(found.key, found.name, error) from error


def hub_digest(found: Found, dataset: Any) -> str:
    """Hashes what names a version of a data set of the hub: the revision is part of the copied files' path."""
    files = [Path(file["filename"]) for file in getattr(dataset, "cache_files", [])]
    places = [f"{'/'.join(path.parts[-3:])} {path.stat().st_size}" for path in files]
    said = [found.path, str(found.subset), str(found.split), str(dataset.features), *places]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def parquet_digest(found: Found) -> str:
    """Hashes size and footer of a parquet file: the footer has the place and statistics of every column.

    Raises:
        UserError: There is no footer.
    """
    with open(found.path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little") + 8
        if tail[4:] != _MAGIC or length > size:
            raise reject(found.key, found.name, "not a parquet file, or not whole")
        file.seek(size - length)
        return hashlib.sha256(f"{size}\n".encode() + file.read()).hexdigest()


def unreadable(found: Found, error: Exception) -> UserError:
    """Says why a file can not be read."""
    return reject(found.key, found.name, f"can not be read ({_brief(error)})")


def no_hub(key: str, name: str, error: Exception) -> UserError:
    """Says that a name is neither here nor on the hub."""
    return reject(key, name, f"no such file or folder, and the hub does not give it ({_brief(error)})")


def _table(found: Found, digest: str, dataset: Any) -> ArrowTable:
    return ArrowTable(found.name, found.folder, digest, dataset.with_format("arrow"))


def _cache(found: Found, cache: Path | None) -> str:
    if cache is None:
        raise reject("data.cache_dir", "null", f"{found.name} is read through a copy on disk; give a folder for it")
    return str(cache / "datasets")


def _brief(error: Exception) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), 'no reason given')[:300]}"
