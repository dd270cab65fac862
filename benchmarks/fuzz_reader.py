"""Reads files of rows as a run does, and holds what it says of them against what they have to become."""

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


class Reader:
    """Reads files of rows as a run does, with the tiny checkpoint's processor."""

    def __init__(self, home: Path, *more: str) -> None:
        """Args: home: Where good images are; more: Overrides of the run."""
        from harness.model.processor import load_processor

        registry.load()
        self.home = home
        for name, size in (("a.png", (40, 30)), ("b.jpg", (64, 48))):
            Image.effect_noise(size, 40).convert("RGB").save(home / name)
        path = home / "none.jsonl"
        overrides = ["data=jsonl", f"data.train={path}", "data.cache_dir=null", "data.workers=0", "data.max_length=600"]
        self._config = to_run_config(compose_config([*overrides, "trainer.batch_size=2", *more]))
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
        self.judge_rows(path, origins, [used for _, used in lines])

    def judge_rows(self, path: Path, origins: list[str], fates: list[bool | None]) -> None:
        """Does the same with rows of any file.

        Args:
            path: Of the file.
            origins: Of its rows, as messages name them.
            fates: Whether each is to be used (True), refused (False) or either (None).

        Raises:
            AssertionError: Something is not as it should be.
        """
        found = self._read(path)
        if isinstance(found, UserError):
            assert not any(fates), f"refused as a whole: {found}"
            return
        delivered, out = found
        assert delivered | out.keys() == set(origins), f"lost: {origins} {out}"
        for origin, used in zip(origins, fates, strict=True):
            assert used is not True or origin in delivered, f"a good row is refused: {out.get(origin)}"
            assert used is not False or origin in out, f"a broken row is used: {origin}"

    def judge_counts(self, path: Path) -> None:
        """Reads a file of which nobody knows what its rows are: it is refused by its name, or its counts add up."""
        self._read(path)

    def _read(self, path: Path) -> tuple[set[str], dict[str, str]] | UserError:
        """Reads a file under both policies; returns the rows delivered and those left out, or why it is refused."""
        data: DataModule | None = None
        try:
            data = self.open(path, "skip")
            data.prepare()
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), f"does not name its file: {error}"
            return error
        account = data.accounts["train"]
        early = _named(account)
        delivered = _delivered(data)
        out = _named(account)
        assert account.used == len(delivered), f"{account.used} rows used by the account, {len(delivered)} delivered"
        assert account.rows == len(delivered) + len(out), (
            f"{account.rows} rows counted, {len(delivered)} and {len(out)}"
        )
        assert delivered.isdisjoint(out), f"delivered and left out: {delivered & out.keys()}"
        self._raises(path, early, out)
        return delivered, out

    def write(self, path: Path, rows: list[tuple[Any, bool | None]]) -> list[tuple[bytes, bool | None]]:
        """Writes JSON Lines, and returns them as `judge` takes them."""
        lines = [(as_line(row), used) for row, used in rows]
        path.write_bytes(b"".join(line + b"\n" for line, _ in lines))
        return lines

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
    data.total_steps = data.steps(1, 1)
    data.start_workers(0, 1)
    origins: set[str] = set()
    for batch in data.train_dataloader():
        assert batch.step_supervised == batch.num_supervised == len(batch.targets), "supervised tokens"
        assert batch.loss_weights is None or bool(batch.loss_weights.isfinite().all()), "a loss weight is not finite"
        assert batch.pixel_values is None or bool(batch.pixel_values.isfinite().all()), "a pixel is not finite"
        origins.update(batch.origins)
    return origins


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
