"""Rows from JSON Lines files: ms-swift's `messages` and `images` with `<image>` tags, or OpenAI's content lists."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.config import DataConfig
from harness.errors import UserError, reject
from harness.registry import register

if TYPE_CHECKING:
    from hashlib import _Hash

    from harness.data.row import Row, Sources


@dataclass(kw_only=True, slots=True)
class JsonlConfig(DataConfig):
    """Your own rows: one JSON object a line."""

    name: str = "jsonl"
    train: Any = None
    """JSONL file to train on, or a list of them. Mandatory."""
    val: Any = None
    """JSONL file to validate on, or a list of them; null for none."""
    split_ratio: float = 0.0
    """Share of the training rows that is set apart for validation, where val is null; 0 sets none apart."""
    seed: int = 42
    """Seed of that split; it is not the run's seed, so that every run validates on the same rows."""
    root: str | None = None
    """Folder that relative image paths start from; null takes the folder of the JSONL file that names them."""

    def __post_init__(self) -> None:
        # Zero-argument super() fails in a slots dataclass: the decorator makes a second class of the same name.
        DataConfig.__post_init__(self)
        self.train = _paths("data.train", self.train)
        self.val = _paths("data.val", self.val)
        if not self.train:
            raise reject("data.train", "null", "give a JSONL file, or a list of them")
        if not 0 <= self.split_ratio < 1:
            raise reject("data.split_ratio", self.split_ratio, "give 0, or a share below 1")
        if self.val and self.split_ratio:
            raise reject("data.split_ratio", self.split_ratio, "has no effect beside data.val; set one of them")


def _paths(key: str, value: Any) -> list[str]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise reject(key, value, "give a path or a list of paths")
    return paths


@register("data", JsonlConfig)
def build(config: JsonlConfig) -> "Sources":
    """Reads and checks every row; images are looked up, not opened.

    Raises:
        UserError: A file or a row can not be used; the message begins with `file:line`.
    """
    import hashlib

    from harness.data.row import Sources

    if config.root is not None and not Path(config.root).is_dir():
        raise reject("data.root", config.root, "no such folder")
    content = hashlib.sha256(f"{config.split_ratio} {config.seed}".encode())
    train = [row for path in config.train for row in _read("data.train", path, config, content)]
    content.update(b"validation")
    val = [row for path in config.val for row in _read("data.val", path, config, content)]
    if config.split_ratio:
        train, val = _split(train, config.split_ratio, config.seed)
    return Sources(train=train, val=val, fingerprint=content.hexdigest())


def _read(key: str, name: str, config: JsonlConfig, content: "_Hash") -> list["Row"]:
    """Returns the rows of a file and adds its bytes, and the size of each image file, to the fingerprint."""
    from harness.data.row import canonical

    path = Path(name).expanduser()
    if not path.is_file():
        raise reject(key, name, "no such file")
    root = Path(config.root) if config.root is not None else path.parent
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content.update(line)
            if line.strip():
                origin = f"{name}:{number}"
                rows.append(canonical(_parse(line, origin), origin, root, config.image.max_pixels_decoded))
    if not rows:
        raise reject(key, name, "the file has no rows")
    for row in rows:
        for image in row.images:
            content.update(str(image.num_bytes()).encode())
    return rows


def _parse(line: bytes, origin: str) -> Any:
    import json

    try:
        # A byte order mark can stand before the first row only; utf-8-sig takes both.
        return json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: not JSON at column {error.colno} ({error.msg}); each line is one object") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from error


def _split(rows: list["Row"], ratio: float, seed: int) -> tuple[list["Row"], list["Row"]]:
    """Sets a share of the rows apart, drawn without regard to their order; both parts keep the order of the files."""
    import random

    num_val = round(len(rows) * ratio)
    if not 0 < num_val < len(rows):
        raise reject("data.split_ratio", ratio, f"leaves one side empty with {len(rows)} rows")
    chosen = set(random.Random(seed).sample(range(len(rows)), num_val))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]
