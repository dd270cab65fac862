"""What an entry of `data.train` leads to: files, saved data sets and splits of the hub, each of one kind."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from harness.data.source.spec import Spec
from harness.errors import UserError, reject


class Kind(Enum):
    """How a source is read."""

    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    txt = "txt"
    saved = "saved"
    hub = "hub"


SUFFIXES = {f".{kind.name}": kind for kind in Kind if kind not in (Kind.saved, Kind.hub)}
_PICKLED = frozenset((".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"))
"""Reading such a file can run code that stands in it."""
_METADATA = frozenset(("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ALL = "all"
"""In the place of a subset, where none has that name."""
_TRAIN = frozenset(("train", "training"))
_HELD_OUT = frozenset(("test", "testing", "val", "valid", "validation", "dev", "eval"))


@dataclass(frozen=True, slots=True)
class Found:
    """One file, saved data set or split."""

    kind: Kind
    key: str
    """Config key whose entry led here, for messages."""
    name: str
    """As the user wrote it; origins begin with it."""
    path: str
    """File or folder, or the hub id."""
    subset: str | None = None
    """Configuration of a hub id."""
    split: str | None = None
    """Of a hub id; None: train."""

    @property
    def folder(self) -> Path:
        """Where relative paths in rows start from."""
        if self.kind is Kind.hub:
            return Path.cwd()
        path = Path(self.path).absolute()
        return path if self.kind is Kind.saved else path.parent

    @property
    def identity(self) -> tuple[str | None, ...]:
        """Equal for equal rows, by whatever name they were reached."""
        path = self.path if self.kind is Kind.hub else os.path.realpath(self.path)
        return self.kind.name, path, self.subset, self.split


def find(key: str, spec: Spec) -> list[Found]:
    """Returns what an entry leads to; nothing is read, but for the names of a hub id's subsets.

    Args:
        key: Config key, for messages.
        spec: The entry.

    Raises:
        UserError: Nothing is there, it is of no known kind, or it has no such subset.
    """
    path = os.path.expanduser(spec.path)
    if os.path.isfile(path):
        if spec.subsets:
            raise reject(key, spec.text, "a file has no subsets; they are of folders and hub ids")
        return [_file(key, spec.path, path)]
    if os.path.isdir(path):
        return [found for name, folder in _chosen(key, spec, path) for found in _folder(key, name, folder)]
    if Path(path).suffix.lower() in SUFFIXES:
        raise reject(key, spec.text, "no such file")
    if not _HUB_ID.fullmatch(spec.path):
        raise reject(key, spec.text, "no such file or folder; a data set of the hub is named owner/name")
    return _hub(key, spec)


def _file(key: str, name: str, path: str) -> Found:
    suffix = Path(path).suffix.lower()
    if suffix in _PICKLED:
        raise reject(key, name, f"{suffix} files can run code when they are read; convert it to .jsonl or .parquet")
    if suffix not in SUFFIXES:
        raise reject(key, name, f"not one of {', '.join(SUFFIXES)}")
    return Found(SUFFIXES[suffix], key, name, path)


def _chosen(key: str, spec: Spec, path: str) -> Iterator[tuple[str, str]]:
    """Yields name and path of the folder, or of its subsets."""
    splits = _splits(key, spec.text, path)
    if not splits and not spec.subsets:
        yield spec.path, path
        return
    known = splits or tuple(sorted(entry.name for entry in os.scandir(path) if entry.is_dir()))
    subsets = spec.subsets or (("train",) if "train" in splits else splits)
    if splits and not spec.subsets and len(subsets) > 1:
        raise reject(key, spec.text, f"has the splits {', '.join(splits)}; choose with {spec.path}:{splits[0]}")
    if subsets == (_ALL,) and _ALL not in known:
        subsets = known or subsets
    for subset in subsets:
        folder = os.path.join(path, subset)
        if not os.path.isdir(folder):
            raise reject(key, spec.text, f"has no sub-folder {subset!r}; there are {', '.join(known) or 'none'}")
        yield os.path.join(spec.path, subset), folder


def _splits(key: str, text: str, path: str) -> tuple[str, ...]:
    """Returns the splits of a saved DatasetDict; none of any other folder."""
    file = Path(path) / "dataset_dict.json"
    if not file.is_file():
        return ()
    try:
        return tuple(map(str, json.loads(file.read_bytes())["splits"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise reject(key, text, f"dataset_dict.json in it is broken ({type(error).__name__}); save it again") from error


def _folder(key: str, name: str, folder: str) -> list[Found]:
    """Returns every data file and saved data set below a folder, sorted; hidden ones are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        shown = os.path.join(name, os.path.relpath(parent, folder)) if parent != folder else name
        if {"state.json", "dataset_info.json"} <= set(files):
            found.append(Found(Kind.saved, key, shown, parent))
            folders.clear()
            continue
        for file in sorted(files):
            kind = SUFFIXES.get(Path(file).suffix.lower())
            if kind is not None and file not in _METADATA and not file.startswith("."):
                found.append(Found(kind, key, os.path.join(shown, file), os.path.join(parent, file)))
    if not found:
        raise reject(key, name, f"the folder has no {', '.join(SUFFIXES)} file and no saved data set")
    _check_splits(key, name, folder, found)
    return found


def _check_splits(key: str, name: str, folder: str, found: list[Found]) -> None:
    """Refuses a folder of which one part is meant for training and another is not."""
    words = {
        one.name: set(re.split(r"[^a-z]+", os.path.relpath(one.path, folder).lower().rpartition(".")[0]))
        for one in found
    }
    train = [file for file, said in words.items() if said & _TRAIN]
    other = [file for file, said in words.items() if said & _HELD_OUT and not said & _TRAIN]
    if train and other:
        raise reject(key, name, f"holds {train[0]} and {other[0]}, of different splits; name the files or sub-folders")


def _hub(key: str, spec: Spec) -> list[Found]:
    """Returns the configurations or splits of a hub id that its subsets name."""
    if not spec.subsets:
        return [Found(Kind.hub, key, spec.path, spec.path)]
    from harness.data.source.table_arrow import library, no_hub

    datasets = library()
    try:
        configs = list(datasets.get_dataset_config_names(spec.path))
        unknown = [subset for subset in spec.subsets if subset not in configs]
        splits = list(datasets.get_dataset_split_names(spec.path)) if unknown and unknown != [_ALL] else []
    except UserError:
        raise
    except Exception as error:  # of the network, and of `datasets`
        raise no_hub(key, spec.text, error) from error
    if unknown == [_ALL] == list(spec.subsets):
        return [Found(Kind.hub, key, f"{spec.path}:{config}", spec.path, config) for config in configs]
    wrong = [subset for subset in unknown if subset not in splits]
    if wrong:
        raise reject(key, spec.text, f"has no subset {wrong[0]!r}; there are {', '.join(configs + splits)}, and all")
    return [
        Found(Kind.hub, key, f"{spec.path}:{name}", spec.path, *((name, None) if name in configs else (None, name)))
        for name in spec.subsets
    ]
