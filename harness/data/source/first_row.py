"""The first row of a file, before all that reading the others takes."""

from collections.abc import Mapping

from harness.data.format.canonical import canonical
from harness.data.source.feed import open_feed
from harness.data.source.found import Kind, find
from harness.data.source.open import Options
from harness.data.source.rows import Reading
from harness.data.source.spec import exists, parse

ROW_BY_ROW = (Kind.jsonl, Kind.csv, Kind.tsv, Kind.txt)
"""What can be begun without reading it all, or importing what reads it."""


def look(key: str, entry: str, columns: Mapping[str, str], reading: Reading | None) -> None:
    """Finds what an entry leads to, and opens it.

    Args:
        key: Config key, for messages.
        entry: Of that key.
        columns: `data.columns`.
        reading: How rows are read; None leaves them alone.

    Raises:
        UserError: Nothing is there, it can not be read, or its first row can not be used.
    """
    spec = parse(key, entry)
    if spec.subsets and not exists(spec.path):
        return  # asks the hub
    for found in find(key, spec):
        if found.kind not in ROW_BY_ROW:
            continue
        feed = open_feed(found, Options(columns, None))
        if reading is not None and spec.sample is None:
            origin, read = next(iter(feed))
            for image in canonical(read(), origin, reading.of(feed.folder)).images:
                image.probe()
