"""Broken rows and images among good ones: which rows a run uses, which it counts as skipped, and what it says of them.

A case is a file of good rows and of some that were changed. The run's own numbers are held against the file: so many
lines that are not blank, all good rows used, what can not be right refused by its line, every row delivered or counted.
"""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_reader import Note, Reader, Run, as_line

Changed = tuple[bytes, bool]
"""A line without its end, and whether it has to be refused."""


def rows(home: Path) -> Run:
    """Makes cases of broken rows."""
    reader = Reader(home)

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        lines: list[tuple[bytes, bool | None]] = [(as_line(reader.good(draw)), True) for _ in range(draw.randint(1, 3))]
        kinds = []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            name, change = draw.choice(CHANGES)
            line, has_to_go = change(reader.good(draw), draw)
            kinds.append(name)
            lines.insert(draw.randint(0, len(lines)), (line, False if has_to_go else None))
        note["kind"] = kinds[0]
        path = folder / draw.choice(("rows.jsonl", "a b.jsonl", "zeilenä.jsonl"))
        write(path, [line for line, _ in lines], draw)
        reader.judge(path, lines)

    return run


def write(path: Path, lines: list[bytes], draw: random.Random) -> None:
    """Writes lines with the ends, blank lines and byte order marks that files come with."""
    content = b"\xef\xbb\xbf" if draw.random() < 0.1 else b""
    for line in lines:
        content += line + draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\n  \t\n"))
    path.write_bytes(content.rstrip(b"\r\n") if draw.random() < 0.3 else content)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Returns every container of a row with a key or an index of it."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(node, key), *_places(node[key])]]


_OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 1.5, -0.0, 1e300, 2**63, -(2**63), 10**299, "", "x", "\u0000", "<image>", "<bbox>"),
    *("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "{}", "[1", "(", "nan", [], {}, [[]], [None], [{}], {"": ""}),
    *(
        {"role": "user"},
        {"type": "image"},
        {"bytes": "!"},
        {"url": "file:///dev/zero"},
        "/dev/zero",
        "/",
        ".",
        "\u202e",
    ),
)


def _other_value(row: dict[str, Any], draw: random.Random) -> Changed:
    for _ in range(draw.choice((1, 1, 2, 4))):
        node, key = draw.choice(_places(row))
        node[key] = copy.deepcopy(draw.choice(_OTHERS))
        if not _places(row):
            break
    return as_line(row), False


def _without(row: dict[str, Any], draw: random.Random) -> Changed:
    node, key = draw.choice(_places(row))
    del node[key]
    return as_line(row), False


def _twice(row: dict[str, Any], draw: random.Random) -> Changed:
    node, key = draw.choice([place for place in _places(row) if isinstance(place[0], list)] or [({}, "x")])
    if isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    return as_line(row), False


def _truncated(row: dict[str, Any], draw: random.Random) -> Changed:
    line = as_line(row)
    return line[: draw.randrange(1, len(line))], True


def _bytes(row: dict[str, Any], draw: random.Random) -> Changed:
    line = bytearray(as_line(row))
    for _ in range(draw.choice((1, 1, 2, 8, 32))):
        place = draw.randrange(len(line))
        line[place] = draw.choice([byte for byte in range(256) if byte not in b"\n"])
    return bytes(line) if line.strip() else b"0", False


def _no_utf8(row: dict[str, Any], draw: random.Random) -> Changed:
    line = as_line(row)
    place = draw.randrange(1, len(line))
    bad = draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\x80"))
    return line[:place] + bad + line[place:], True


def _control(row: dict[str, Any], draw: random.Random) -> Changed:
    line = as_line(row)
    return line.replace(b'"', b'"' + draw.choice((b"\0", b"\x1f", b"\x01")), draw.randint(1, 3)), True


def _in_text(*texts: str, refused: bool) -> Callable[[dict[str, Any], random.Random], Changed]:
    def change(row: dict[str, Any], draw: random.Random) -> Changed:
        said = draw.choice(texts)
        return as_line({"query": f"say {said} it", "response": f"{said} done"}), refused

    return change


def _raw(*lines: str | bytes) -> Callable[[dict[str, Any], random.Random], Changed]:
    def change(row: dict[str, Any], draw: random.Random) -> Changed:
        line = draw.choice(lines)
        return line if isinstance(line, bytes) else line.encode(), True

    return change


def _deep(row: dict[str, Any], draw: random.Random) -> Changed:
    depth = draw.choice((101, 1_000, 100_000, 1_000_000))
    opened, closed = draw.choice((("[", "]"), ('{"a":', "}"), ('{"role":"user","content":[', "]}")))
    inside = opened * depth + ("1" if opened[-1] == ":" else "") + (closed * depth if draw.random() < 0.7 else "")
    return f'{{"messages": {inside}, "query": "q", "response": "r"}}'.encode(), True


def _deep_tools(row: dict[str, Any], draw: random.Random) -> Changed:
    deep: Any = 1
    for _ in range(draw.randint(70, 90)):
        deep = draw.choice(({"a": deep}, [deep]))
    key = draw.choice(("tools", "messages", "arguments"))
    if key == "arguments":
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"deep": deep}}}]}
        return as_line({"messages": [{"role": "user", "content": "q"}, call]}), True
    tool = {"type": "function", "function": {"name": "f", "parameters": {"deep": deep}}}
    return as_line({"query": "q", "response": "r"} | ({"tools": [tool]} if key == "tools" else {key: deep})), True


def _huge(row: dict[str, Any], draw: random.Random) -> Changed:
    text = draw.choice(("a", "a b ", "ä", "<", "<image", '"\\', "\U0001f600", "\u0301")) * draw.choice((10**4, 10**5))
    return as_line({"query": draw.choice((text, "q")), "response": text}), False


def _too_large(row: dict[str, Any], draw: random.Random) -> Changed:
    if draw.random() < 0.95:  # a second each
        return _huge(row, draw)
    return b'{"query": "' + b"a" * (64 * 2**20) + b'", "response": "r"}', True


def _with(of: str, *values: Any) -> Callable[[dict[str, Any], random.Random], Changed]:
    """Puts what can not be right in a place: a loss, a box, a bound, an image, a role."""

    def change(row: dict[str, Any], draw: random.Random) -> Changed:
        value = copy.deepcopy(draw.choice(values))
        answer: dict[str, Any] = {"role": "assistant", "content": "r"}
        made: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}, answer]}
        if of in ("loss", "loss_scale", "role"):
            answer[of] = value
        elif of == "bbox":
            answer["content"] = "at <bbox>"
            made |= {"images": [row["images"][0]] if "images" in row else [], "objects": {"bbox": value}}
        else:
            made[of] = value
        return as_line(made), True

    return change


def _placeholders(row: dict[str, Any], draw: random.Random) -> Changed:
    tags, there = draw.choice([(tags, there) for tags in range(1, 5) for there in range(5) if tags != there])
    image = row["images"][0] if "images" in row else "/dev/null"
    said = "<image>" * tags + "what?"
    return as_line({"query": said, "response": "r", "images": [image] * there}), True


_PATHS = (
    "missing.png",
    "/dev/zero",
    "/dev/stdin",
    "/",
    "",
    "~nobody/x.png",
    "a\0b.png",
    "x" * 5000,
    "file:///dev/zero",
)
_ADDRESSES = ("http://localhost:1/a.png", "HTTPS://[::1/a.png", "http://", "file://host/a.png", "ftp://localhost/a.png")
_DATA = ("data:", "data:image/png;base64,", "data:image/png;base64,!!!!", "data:image/png,x", "data:;base64,AAAA")

CHANGES: list[tuple[str, Callable[[dict[str, Any], random.Random], Changed]]] = [
    ("another value", _other_value),
    ("another value", _other_value),
    ("another value", _other_value),
    ("a key or entry less", _without),
    ("an entry twice", _twice),
    ("cut off", _truncated),
    ("other bytes", _bytes),
    ("other bytes", _bytes),
    ("not UTF-8", _no_utf8),
    ("NUL and control characters", _control),
    ("half a surrogate pair", _in_text("\ud800", "\udfff", "\udc00\ud800", refused=True)),
    (
        "odd characters",
        _in_text("\0", "\u202e", "\ufeff", "\u2028", "\x7f", "\U0010ffff", "\u0301" * 999, refused=False),
    ),
    (
        "template tokens",
        _in_text(
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|image_pad|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|video_pad|>",
            "<think>",
            "</tool_call>",
            refused=False,
        ),
    ),
    ("nested deeply", _deep),
    ("nested tools", _deep_tools),
    ("huge", _huge),
    ("huge", _too_large),
    (
        "no object",
        _raw("3", "null", "true", '"x"', "[]", "[1, 2]", "NaN", "{", "}", "{}", "\0", "'a'", "{'a': 1}", b"\xff"),
    ),
    ("a key twice", _raw('{"query": "a", "query": "b", "response": "c"}', '{"messages": [], "messages": []}')),
    (
        "no answer",
        _raw(
            '{"messages": []}',
            '{"query": "q"}',
            '{"messages": [{"role": "user", "content": "q"}]}',
            '{"messages": null}',
            '{"text": ""}',
            '{"images": []}',
        ),
    ),
    (
        "numbers that are none",
        _raw(
            *(
                f'{{"query": "q", "response": "r", "min_pixels": {number}}}'
                for number in ("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "-1", "0", "1.5", "1e3", "01")
            )
        ),
    ),
    (
        "loss weights",
        _raw(
            *(
                f'{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "r", '
                f'"loss_scale": {number}}}]}}'
                for number in ("NaN", "Infinity", "1e999", "-1", "true", '"1"')
            )
        ),
    ),
    ("loss weights", _with("loss", 2, -1, "yes", [], {}, 0.5)),
    ("loss weights", _with("loss_scale", 1e300, -0.1, "0.5", [1], {}, 10**20)),
    ("wrong roles", _with("role", "usre", "", None, 3, [], "Assistant", "system", "user", "tool_call\0")),
    ("placeholders that do not match", _placeholders),
    ("images that are not there", _with("images", *([path] for path in _PATHS), *([path] for path in _ADDRESSES))),
    ("images that are none", _with("images", *([entry] for entry in _DATA), [{}], [3], [None], [[]], [{"bytes": "?"}])),
    (
        "boxes",
        _with(
            "bbox",
            [[]],
            [[1]],
            [[1, 2, 3]],
            [[1, 2, 3, 4, 5]],
            [["1", "2"]],
            [[None, 1]],
            [1, 2, 3, 4],
            "[[1,",
            [[1e300, 1, 2, 3]],
            [[-5, 0, 10, 10]],
            [[0, 0, 10**9, 10]],
            [],
            [[1, 2], [3, 4]],
            [[True, False]],
        ),
    ),
]
