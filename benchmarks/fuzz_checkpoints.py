"""Broken checkpoints: a run's own, a base model's folder, an adapter, the kept start of one.

A run's checkpoint is taken where its bytes are those that were written, and else the one before. A model or an adapter
is loaded with all its weights as they stand in the file, or refused by its path. Bytes of weights have no checksum in
safetensors: a flipped one is another weight, and only its header and its length can be wrong.
"""

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.experiment.restore import newest_whole
from harness.model.checkpoint_path import resolve
from harness.trainer import manifest
from harness.tuner import own_format
from harness.tuner.outlook import Outlook
from harness.tuner.start.factors import Factors, kept

Note = dict[str, str]
WEIGHTS = "model.safetensors"


def checkpoints(home: Path) -> Callable[[Path, random.Random, Note], None]:
    """Makes cases of broken checkpoints."""
    kinds = [_Run(home), *[_Model(home)] * 2, _Adapter(home), _Start(home)]

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        draw.choice(kinds)(folder, draw, note)

    return run


class _Run:
    """A run's folder with two checkpoints, of a file and of torch's parts."""

    def __init__(self, home: Path) -> None:
        self._folders = [faults.parts(home), RunFolder(home / "file")]
        for step in (1, 2):
            path = self._folders[1].checkpoints / f"step_{step}"
            path.mkdir(parents=True)
            torch.save({"state_dict": {"weight": torch.arange(999.0) * step}, "step": step}, path / "trainer.ckpt")
            manifest.write(path, step, {})
        faults.of(self._folders[1]).go_on_from(2, [])

    def __call__(self, folder: Path, draw: random.Random, note: Note) -> None:
        shutil.copytree(draw.choice(self._folders).path, folder / "run", symlinks=True)
        checkpointer = faults.of(RunFolder(folder / "run"))
        paths = sorted(path for path in (checkpointer.folder / "step_2").rglob("*") if path.is_file())
        path = draw.choice(paths)
        before = path.read_bytes()
        note["kind"] = f"run, {_change_file(path, draw)}"
        same = path.is_file() and path.read_bytes() == before
        taken = newest_whole(checkpointer, falls_back=True)
        assert taken == (2 if same else 1), f"{path.name}: took step {taken}, unchanged: {same}"


class _Model:
    """The folder of a base model, the tiny one."""

    def __init__(self, home: Path) -> None:
        registry.load()
        self._source = home / "model"
        shutil.copytree(resolve("harness:tiny"), self._source)
        weights = load_file(self._source / WEIGHTS)
        # A tenth of the weights' bytes would do for all that is tried here, but then it were no model.
        self._shapes = {name: value.shape for name, value in weights.items()}
        self._config = to_run_config(compose_config([])).model
        self._files = sorted(path.name for path in self._source.iterdir() if path.suffix in (".json", ".jinja"))

    def __call__(self, folder: Path, draw: random.Random, note: Note) -> None:
        from harness.model.loading import load
        from harness.model.processor import load_processor

        target = folder / "model"
        shutil.copytree(self._source, target)
        name = draw.choice([WEIGHTS, WEIGHTS, "config.json", *self._files])
        if draw.random() < 0.15:
            name = _shard(target)
        what = _change_header(target / name, draw) if name == WEIGHTS else _change_file(target / name, draw)
        note["kind"] = f"model, {name}: {what}"
        config = copy.copy(self._config)
        config.path = str(target)
        try:
            if name != WEIGHTS:
                load_processor(config)
            loaded = load(config).model
        except UserError as error:
            assert str(target) in str(error), f"does not name its folder: {error}"
            return
        if name == WEIGHTS:
            _compare(dict(loaded.named_parameters()), load_file(target / WEIGHTS), self._shapes)


class _Adapter:
    """An adapter in the harness's own format, for the tiny model."""

    def __init__(self, home: Path) -> None:
        run = to_run_config(compose_config(["tuner=adapter"]))
        self._base = registry.build("model", run.model).model
        model = copy.deepcopy(self._base)
        modules = [f"model.language_model.layers.{layer}" for layer in range(2)]
        known = {name for name, _ in model.named_modules()}
        named = [name for name in modules if name in known] or [next(name for name in known if name.endswith("mlp"))]
        before = set(dict(model.named_parameters()))
        self._source = home / "adapter"
        own_format._METHODS["adapter"][1](model, run.tuner, named)
        weights = {name: value.detach() for name, value in model.named_parameters() if name not in before}
        own_format.save(self._source, run.tuner, named, weights, "base")

    def __call__(self, folder: Path, draw: random.Random, note: Note) -> None:
        target = folder / "adapter"
        shutil.copytree(self._source, target)
        name = draw.choice((own_format.CONFIG, own_format.WEIGHTS))
        what = (_change_file if name == own_format.CONFIG else _change_header)(target / name, draw)
        note["kind"] = f"adapter, {name}: {what}"
        model = copy.deepcopy(self._base)
        try:
            own_format.attach(model, target)
        except UserError as error:
            assert str(target) in str(error), f"does not name its folder: {error}"
            return
        stored = load_file(target / own_format.WEIGHTS)
        inserted = {name: p for name, p in model.named_parameters() if name in stored}
        assert len(inserted) == len(load_file(self._source / own_format.WEIGHTS)), "attached with weights missing"
        _compare(inserted, stored, {name: value.shape for name, value in stored.items()})


class _Start:
    """The start of an adapter that a run keeps beside its checkpoints."""

    def __init__(self, home: Path) -> None:
        self._source = home / "start.safetensors"
        made = {f"layer.{i}": Factors(torch.ones(2, 8) * i, torch.ones(8, 2)) for i in range(4)}
        kept(self._outlook(self._source), "settings", torch.float32, lambda: made)

    def __call__(self, folder: Path, draw: random.Random, note: Note) -> None:
        target = folder / "start.safetensors"
        shutil.copyfile(self._source, target)
        note["kind"] = f"start: {_change_header(target, draw)}"
        try:
            found = kept(self._outlook(target), "settings", torch.float32, lambda: {})
        except UserError as error:
            assert str(target) in str(error), f"does not name its file: {error}"
            return
        stored = load_file(target)
        read = {f"{field}/{name}": getattr(f, field) for name, f in found.items() for field in ("A_RD", "B_ER")}
        assert read.keys() == stored.keys() and all(isinstance(value, Tensor) for value in read.values())

    @staticmethod
    def _outlook(file: Path) -> Outlook:
        return Outlook(1, lambda *_: iter(()), torch.device("cpu"), file)


def _compare(got: dict[str, Any], stored: dict[str, Tensor], shapes: dict[str, Any]) -> None:
    """A model that loads has every weight of its file, in its shape."""
    for name, shape in shapes.items():
        assert name in stored, f"loaded without {name}"
        assert got[name].numel() == shape.numel(), f"{name} has another size"
        value = stored[name].to(got[name].dtype).reshape(got[name].shape)
        same = torch.equal(got[name].detach().nan_to_num(), value.nan_to_num())
        assert same, f"{name} is not what the file holds"


def _shard(folder: Path) -> str:
    """Splits the weights into two files with an index, and returns the index's name."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, folder / file, {"format": "pt"})
    (folder / WEIGHTS).unlink()
    placed = {name: file for file, inside in parts.items() for name in inside}
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}), encoding="utf-8")
    return index.name


_JSON: tuple[Any, ...] = (None, True, -1, 0, 1, 3, 1.5, 10**30, "", "x", [], {}, [None], {"a": []}, "\u0000", [[1]])


def _change_file(path: Path, draw: random.Random) -> str:
    """Changes a file in one of the ways that files break, or a value of a JSON file; says which."""
    content = path.read_bytes()
    is_json = path.suffix == ".json"
    what = draw.choice(("flip", "flip", "cut", "empty", "grow", "zeros", "gone", *(["value"] * 6 if is_json else [])))
    if what == "value":
        tree = json.loads(content)
        for _ in range(draw.choice((1, 1, 2))):
            places = _places(tree)
            # What is near the root decides most, and lists of tokens are long.
            node, key = draw.choice(places[: draw.choice((8, 40, len(places)))] or [({}, "a")])
            if draw.random() < 0.2 and isinstance(node, dict):
                del node[key]
            else:
                node[key] = copy.deepcopy(draw.choice(_JSON))
        path.write_text(json.dumps(tree), encoding="utf-8")
        return "another value"
    if what == "gone":
        path.unlink()
        return "gone"
    flipped = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 40))):
        if flipped:
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    changed = {
        "flip": bytes(flipped),
        "cut": content[: draw.randrange(max(1, len(content)))],
        "empty": b"",
        "grow": content + draw.randbytes(draw.randint(1, 64)),
        "zeros": b"\0" * len(content),
    }
    path.write_bytes(changed[what])
    return what


def _places(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    own = [(node, key) for key in keys]
    return own + [place for key in keys for place in _places(node[key])]


def _change_header(path: Path, draw: random.Random) -> str:
    """Breaks a safetensors file in its header or its length; says how."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    what = draw.choice(("length", "flip", "flip", "field", "field", "field", "cut", "empty", "grow", "deep", "gone"))
    if what == "gone":
        path.unlink()
        return what
    head, body = content[8 : 8 + size], content[8 + size :]
    if what == "length":
        size = draw.choice(
            (0, 1, size - 1, size + 1, len(content), 2**31, 2**40, 2**63, 2**64 - 1, draw.randrange(size))
        )
        changed = struct.pack("<Q", size) + content[8:]
    elif what == "cut":
        changed = content[: draw.choice((draw.randrange(len(content)), draw.randrange(16), len(content) - 1))]
    elif what == "empty":
        changed = b""
    elif what == "grow":
        changed = content + draw.randbytes(draw.randint(1, 64))
    else:
        if what == "deep":
            head = b'{"a":' * draw.choice((100, 200_000))
        elif what == "flip":
            flipped = bytearray(head)
            for _ in range(draw.choice((1, 1, 3, 20))):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            head = bytes(flipped)
        else:
            head = _other_field(json.loads(head), draw)
        changed = struct.pack("<Q", len(head)) + head + body
    path.write_bytes(changed)
    return what


def _other_field(header: dict[str, Any], draw: random.Random) -> bytes:
    names = [name for name in header if name != "__metadata__"]
    name, other = draw.sample(names, 2)
    entry = header[name]
    what = draw.choice(("dtype", "shape", "offsets", "name", "swap", "metadata", "gone"))
    if what == "dtype":
        entry["dtype"] = draw.choice(("F16", "BF16", "I64", "F8_E4M3", "F99", "", 3, None, "BOOL", "F64"))
    elif what == "shape":
        entry["shape"] = draw.choice(([], [0], [-1], [2**62, 4], [*entry["shape"], 1], entry["shape"][::-1], "x", None))
    elif what == "offsets":
        start, end = entry["data_offsets"]
        entry["data_offsets"] = draw.choice(
            ([end, start], [start, end + 4], [0, 2**63], [-1, 4], [start], None, [0, 0])
        )
    elif what == "name":
        header[f"{name}.x"] = header.pop(name)
    elif what == "swap":
        header[name], header[other] = header[other], header[name]
    elif what == "metadata":
        header["__metadata__"] = draw.choice((3, None, {"format": "tf"}, {"format": 3}, [], {"settings": "other"}, {}))
    else:
        del header[name]
    return json.dumps(header).encode()
