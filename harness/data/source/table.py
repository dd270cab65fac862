"""Raw rows by number: what the files of every kind become before their rows are checked."""

from pathlib import Path
from typing import Any, Protocol


class Table(Protocol):
    """One file, saved data set or split of the hub. Pickles small and reads in any process."""

    @property
    def name(self) -> str:
        """As the user wrote it; origins begin with it."""

    @property
    def folder(self) -> Path:
        """Where the relative paths of its rows start from."""

    @property
    def digest(self) -> str:
        """Hash of the content: of text files every byte; of parquet its size and footer; of a saved data set the names
        and sizes of its files and its state; of the hub the revision and features.
        """

    def __len__(self) -> int:
        """Number of rows."""

    def raw(self, index: int) -> Any:
        """Returns the row as its file has it; raises RowError where it can not be read."""

    def origin(self, index: int) -> str:
        """Returns `file.jsonl:12` where the file has lines, else `file.parquet[11]`."""
