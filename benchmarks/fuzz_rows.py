"""Broken rows and images among good ones: which rows a run uses, which it counts as skipped, and what it says of them.

A case is a file of good rows and of some that were changed. The run's own numbers are held against the file: so many
lines that are not blank, all good rows used, what can not be right refused by its line, every row delivered or counted.
"""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.data.assemble import data_module
from harness.data.datamodule import DataModule
from harness.errors import UserError

Note = dict[str, str]
Run = Callable[[Path, random.Random, Note], None]
Changed = tuple[bytes, bool]
"""A line without its end, and whether it has to be refused."""


class Reader:
    """Reads files of rows as a run does, with the tiny checkpoint's processor."""

    def __init__(self, home: Path) -> None:
        """Args: home: Where good images are."""
        from harness.model.processor import load_processor

        registry.load()
        self.home = home
        for name, size in (("a.png", (40, 30)), ("b.jpg", (64, 48))):
            Image.effect_noise(size, 40).convert("RGB").save(home / name)
        path = home / "none.jsonl"
        overrides = ["data=jsonl", f"data.train={path}", "data.cache_dir=null", "data.workers=0", "data.max_length=600"]
        self._config = to_run_config(compose_config([*overrides, "trainer.batch_size=2"]))
        self._processor = load_processor(self._config.model)

    def open(self, path: Path, on_error: str) -> DataModule:
        """Returns the data of a run on a file."""
        config = copy.deepcopy(self._config)
        config.data.train, config.data.on_error = [str(path)], type(config.data.on_error)[on_error]
        return data_module(config, copy.deepcopy(self._processor))

    def good(self, draw: random.Random) -> dict[str, Any]:
        """Returns a row that can be used, of one of the formats."""
        return copy.deepcopy(draw.choice(_good(self.home)))

    def judge(self, path: Path, lines: list[tuple[bytes, bool | None]]) -> None:
        """Reads a file under both policies and holds what it says against its lines.

        Args:
            path: Of JSON Lines.
            lines: Each that is not blank, and whether it is to be used (True), refused (False) or either (None).

        Raises:
            AssertionError: Something is not as it should be.
        """
        numbers = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
        origins = [f"{path}:{number}" for number in numbers]
        assert len(origins) == len(lines), "the case itself is wrong"
        data = self.open(path, "skip")
        try:
            data.prepare()
        except UserError as error:
            assert not any(used for _, used in lines), f"refused as a whole: {error}"
            assert str(path) in str(error) and "\n" not in str(error), f"does not name its file: {error}"
            return
        account = data.accounts["train"]
        assert account.rows == len(lines), f"{account.rows} rows counted of {len(lines)}"
        early = _named(account)
        delivered = _delivered(data)
        out = _named(account)
        assert account.used == len(delivered), f"{account.used} rows used by the account, {len(delivered)} delivered"
        assert delivered.isdisjoint(out) and delivered | out.keys() == set(origins), f"lost: {origins} {out}"
        for origin, (line, used) in zip(origins, lines, strict=True):
            assert used is not True or origin in delivered, f"a good row is refused: {out.get(origin)}"
            assert used is not False or origin in out, f"a broken row is used: {line[:300]!r}"
        self._raises(path, early, out)

    def _raises(self, path: Path, early: dict[str, str], out: dict[str, str]) -> None:
        """The other policy ends with the first row that the one before skipped, and says the same."""
        data = self.open(path, "raise")
        try:
            data.prepare()
            assert not [text for text in early.values() if text], f"not raised: {early}"
            _delivered(data)
            assert not [text for text in out.values() if text], f"not raised: {out}"
        except UserError as error:
            told = [text for text in out.values() if text]
            assert str(error) in told, f"{error} is not what was skipped: {told}"


def _named(account: Any) -> dict[str, str]:
    """Returns the rows that an account leaves out, with the message of each; a dropped one has none."""
    skipped = [text for texts in account.skipped.first.values() for text in texts]
    assert account.skipped.total == len(skipped), "more skipped than named"
    found = {text.partition(": ")[0]: text for text in skipped}
    assert len(found) == len(skipped), f"a row is skipped twice: {skipped}"
    dropped = [text for texts in account.dropped.first.values() for text in texts]
    assert account.dropped.total == len(dropped) and found.keys().isdisjoint(dropped), "dropped and skipped"
    return found | dict.fromkeys(dropped, "")


def _delivered(data: DataModule) -> set[str]:
    """Runs through an epoch and returns the rows that came up; each step's tokens have to add up."""
    data.total_steps = data.steps_per_epoch(1)
    data.start_workers(0, 1)
    origins: set[str] = set()
    for batch in data.train_dataloader():
        assert batch.step_supervised == batch.num_supervised == len(batch.targets), "supervised tokens"
        assert batch.loss_weights is None or bool(batch.loss_weights.isfinite().all()), "a loss weight is not finite"
        assert batch.pixel_values is None or bool(batch.pixel_values.isfinite().all()), "a pixel is not finite"
        origins.update(batch.origins)
    return origins


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


def as_line(row: Any) -> bytes:
    """Returns a row as a line of JSON Lines, without its end."""
    return json.dumps(row).encode()


def _good(home: Path) -> list[dict[str, Any]]:
    a, b = str(home / "a.png"), str(home / "b.jpg")
    turns = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a lot"}]
    shown = [{"role": "user", "content": "<image>and <image>?"}, {"role": "assistant", "content": "two"}]
    weighted = [turns[0], {**turns[1], "loss_scale": 0.5}]
    where = [{"role": "user", "content": "<image>find it"}, {"role": "assistant", "content": "<ref-object> at <bbox>"}]
    call = {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": 3}}'}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    return [
        {"messages": turns},
        {"messages": [{"role": "system", "content": "be brief"}, *turns, *turns]},
        {"messages": shown, "images": [a, b]},
        {"messages": weighted, "channel": "news"},
        {"messages": where, "images": [a], "objects": {"ref": ["it"], "bbox": [[1, 2, 20, 25]]}},
        {"messages": [turns[0], call, {"role": "tool_response", "content": "7"}, turns[1]], "tools": tools},
        {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]},
        {"query": "<image>what?", "response": "noise", "images": [b], "min_pixels": 1024, "max_pixels": 8192},
        {"instruction": "add", "input": "1 and 1", "output": "2", "history": [["hello", "hello"]]},
        {"text": "some text to learn by heart"},
        {"messages": turns, "rejected_response": "nothing", "label": True, "note": {"of": ["the", "user", 1.5, None]}},
    ]


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
