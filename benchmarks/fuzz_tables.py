"""Broken CSV, TSV and Parquet files and videos: as `fuzz_rows`, of rows that do not stand on lines of their own.

What is changed in a cell leaves the table whole: each row is held against what it has to become. What is changed in the
bytes of a file may move all rows behind it: there the counts have to add up, or the file is refused by its name.
"""

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_reader import Note, Reader, Run

COLUMNS = ("query", "response", "system", "images")
Cells = dict[str, Any]
Fate = bool | None
"""Whether a row is to be used (True), refused (False) or either (None)."""


def tables(home: Path) -> Run:
    """Makes cases of broken tables and videos."""
    reader = Reader(home, f"data.cache_dir={home / 'cache'}", "data.video.time_limit_s=5")
    movie = _movie(home / "movie.mp4")
    kinds = [_csv(reader, ","), _csv(reader, "\t"), _parquet(reader), _video(reader, movie)]

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        draw.choice(kinds)(folder, draw, note)

    return run


def _good(home: Path, draw: random.Random) -> Cells:
    said = draw.choice(
        ("a lot", 'a "word"', "one, two", "two\nlines", "tab\there", "ä\U0001f600", "'", "=1+1", "x" * 99)
    )
    shown = draw.random() < 0.4
    images = draw.choice((str(home / "a.png"), f'["{home / "a.png"}"]')) if shown else None
    system = draw.choice(("be brief", None))
    return {"query": "<image>what?" if shown else "what?", "response": said, "system": system, "images": images}


CELLS: list[tuple[str, Callable[[Cells, random.Random], None], Fate]] = [
    ("no answer", lambda row, draw: row.update(response=None), False),
    ("an image that is not there", lambda row, draw: row.update(images="nowhere.png", query="<image>?"), False),
    ("tags without images", lambda row, draw: row.update(images=None, query="<image><image>?"), False),
    ("a control token", lambda row, draw: row.update(response="<|im_end|>"), None),
    ("half of a list", lambda row, draw: row.update(images='["a.png"', query="<image>?"), False),
    (
        "odd characters",
        lambda row, draw: row.update(response=draw.choice(("\u2028", "\x85", "\x0b", "\x7f", "\ufeff"))),
        None,
    ),
]
"""Changes of a cell, and what has to become of the row."""


def _rows(home: Path, draw: random.Random) -> tuple[list[Cells], list[Fate], str]:
    rows = [_good(home, draw) for _ in range(draw.randint(2, 4))]
    fates: list[Fate] = [True] * len(rows)
    name, change, fate = draw.choice(CELLS)
    place = draw.randrange(len(rows))
    change(rows[place], draw)
    fates[place] = fate
    return rows, fates, name


def _csv(reader: Reader, delimiter: str) -> Run:
    suffix = "csv" if delimiter == "," else "tsv"

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        rows, fates, name = _rows(reader.home, draw)
        path, end = folder / f"rows.{suffix}", draw.choice(("\n", "\r\n"))
        quoting = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        records = [_record([*COLUMNS], delimiter, end, csv.QUOTE_MINIMAL)]
        records += [
            _record(["" if row[key] is None else row[key] for key in COLUMNS], delimiter, end, quoting) for row in rows
        ]
        what = draw.choice(("cell", "cell", "cells", "bytes"))
        if what == "cells":
            place = draw.randrange(len(rows))
            more = _record(["x"] * draw.choice((1, 3, 5, 9)), delimiter, end, quoting)
            records[place + 1], fates[place], name = more, False, "more or fewer cells"
        content = "".join(records).encode()
        if what == "bytes":
            content, name = change_bytes(content, draw)
        mark = draw.choice((b"", b"", b"\xef\xbb\xbf"))
        path.write_bytes(mark + content)
        note["kind"] = f"{suffix}: {name}"
        if what == "bytes":
            reader.judge_counts(path)
            return
        lines = [1 + "".join(records[: number + 1]).count("\n") for number in range(len(rows))]
        reader.judge_rows(path, [f"{path}:{line}" for line in lines], fates)

    return run


def _record(cells: list[str], delimiter: str, end: str, quoting: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerow(cells)
    return text.getvalue()


def _parquet(reader: Reader) -> Run:
    import pyarrow as pa
    import pyarrow.parquet as pq

    odd: dict[str, Any] = {
        "times": pa.array([0, 2**62, None, -(2**62)], pa.timestamp("ns")),
        "decimals": pa.array([1, None, 2, 3], pa.decimal128(20, 5)),
        "bytes": pa.array([b"\xff", b"", None, b"a"], pa.binary()),
        "nested": pa.array([[{"a": 1}], [], None, [{"a": None}]]),
        "words": pa.array(["a", "b", None, "a"]).dictionary_encode(),
        "nothing": pa.nulls(4),
    }

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        rows, fates, name = _rows(reader.home, draw)
        path, what = folder / "rows.parquet", draw.choice(("cell", "column", "bytes", "bytes"))
        columns = {key: pa.array([row[key] for row in rows], pa.string()) for key in COLUMNS}
        if what == "column":
            name = draw.choice([*odd])
            key = draw.choice((*COLUMNS, "note"))
            columns[key] = pa.concat_arrays([odd[name]] * 2)[: len(rows)] if name != "nothing" else pa.nulls(len(rows))
            name = f"a column of {name}"
        group = draw.choice((1, 2, 100))
        compression = draw.choice(("none", "snappy", "zstd"))
        pq.write_table(pa.table(columns), path, row_group_size=group, compression=compression)
        if what == "bytes":
            content, name = change_bytes(path.read_bytes(), draw)
            path.write_bytes(content)
        note["kind"] = f"parquet: {name}"
        if what == "cell":
            reader.judge_rows(path, [f"{path}[{number}]" for number in range(len(rows))], fates)
        else:
            reader.judge_counts(path)

    return run


def _video(reader: Reader, movie: bytes) -> Run:
    def run(folder: Path, draw: random.Random, note: Note) -> None:
        content, name = change_bytes(movie, draw)
        video, path = folder / draw.choice(("a.mp4", "a.mkv", "a b.avi")), folder / "rows.jsonl"
        video.write_bytes(content)
        row = {"query": "<video>what?", "response": "noise", "videos": [str(video)]}
        note["kind"] = f"video: {name}"
        reader.judge(path, reader.write(path, [({"query": "q", "response": "r"}, True), (row, None)]))

    return run


def change_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Changes the bytes of a file in one of the ways that files break; returns them and says which."""
    flipped = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 40))):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    start = draw.randrange(len(content))
    stop = min(len(content), start + draw.choice((1, 8, 64, 4096)))
    changed = {
        "flip": bytes(flipped),
        "cut": content[:start],
        "hole": content[:start] + b"\0" * (stop - start) + content[stop:],
        "gone": content[:start] + content[stop:],
        "twice": content[:stop] + content[start:],
        "noise": content[:start] + draw.randbytes(stop - start) + content[stop:],
        "grow": content + draw.randbytes(draw.randint(1, 64)),
        "empty": b"",
    }
    name = draw.choice(("flip", "flip", *changed))
    return changed[name], name


def _movie(path: Path) -> bytes:
    """Writes a second of noise and returns the file's content."""
    import av
    import numpy as np

    pixels = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(pixels.integers(0, 256, (48, 64, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()
