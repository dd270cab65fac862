"""Opens what an entry of `data.train` leads to as tables, each once however often it is named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.data.source.found import Found, Kind, find
from harness.data.source.json_text import parse_json
from harness.data.source.spec import Spec
from harness.data.source.table import Table
from harness.data.source.table_arrow import open_hub, open_parquet, open_saved
from harness.data.source.table_csv import open_csv
from harness.data.source.table_json import open_json
from harness.data.source.table_lines import open_lines, parse_text
from harness.errors import reject


@dataclass(frozen=True, slots=True)
class Options:
    """What reading a source depends on besides its path."""

    columns: Mapping[str, str]
    cache: Path | None
    """Folder for copies of parquet and of the hub."""


@dataclass(slots=True)
class Opener:
    """Tables by what they are of, so that two entries that lead to one file share its rows."""

    options: Options
    tables: list[Table] = field(default_factory=list)
    """All that were opened, in that order."""
    _numbers: dict[tuple[str | None, ...], int] = field(default_factory=dict)

    def open(self, key: str, spec: Spec) -> list[int]:
        """Returns the numbers, in `tables`, of what an entry leads to.

        Args:
            key: Config key, for messages.
            spec: The entry.

        Raises:
            UserError: A source can not be read or has no rows.
        """
        return [self._number(found) for found in find(key, spec)]

    def _number(self, found: Found) -> int:
        if found.identity not in self._numbers:
            self.tables.append(open_table(found, self.options))
            self._numbers[found.identity] = len(self.tables) - 1
        return self._numbers[found.identity]


def open_table(found: Found, options: Options) -> Table:
    """Opens one source.

    Raises:
        UserError: It can not be read or has no rows.
    """
    try:
        table = _OPEN[found.kind](found, options)
    except OSError as error:
        raise reject(found.key, found.name, f"can not be read ({error.strerror or error})") from error
    if not len(table):
        raise reject(found.key, found.name, "the file has no rows")
    return table


def _csv(delimiter: str) -> Callable[[Found, Options], Table]:
    return lambda found, options: open_csv(found.path, found.name, found.key, delimiter, options.columns)


_OPEN: Mapping[Kind, Callable[[Found, Options], Table]] = {
    Kind.jsonl: lambda found, _: open_lines(found.path, found.name, parse_json),
    Kind.txt: lambda found, _: open_lines(found.path, found.name, parse_text),
    Kind.json: lambda found, _: open_json(found.path, found.name, found.key),
    Kind.csv: _csv(","),
    Kind.tsv: _csv("\t"),
    Kind.parquet: lambda found, options: open_parquet(found, options.cache),
    Kind.saved: lambda found, _: open_saved(found),
    Kind.hub: lambda found, options: open_hub(found, options.cache),
}
