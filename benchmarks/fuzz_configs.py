"""Broken YAML where configs are read: a run's own, its overrides, a study, an experiment of the user's own.

What is read has to be a config that passes every check, or is refused by the file's name.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from harness import config, registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config
from harness.errors import UserError
from harness.experiment import resume
from harness.sweep import study

Note = dict[str, str]


def configs(home: Path) -> Callable[[Path, random.Random, Note], None]:
    """Makes cases of broken configs."""
    registry.load()
    config.save(compose_config(["trainer.max_steps=3"]), home / "config.yaml")
    (home / "overrides.yaml").write_text("- trainer.max_steps=3\n- tuner=dora\n- optim.lr=1e-4\n", encoding="utf-8")
    shutil.copyfile(study.STUDIES / f"{study.names()[0]}.yaml", home / "study.yaml")
    shutil.copyfile(registry.CONF / "experiment" / "demo.yaml", home / "experiment.yaml")
    readers = {"config": _config, "overrides": _overrides, "study": _study, "experiment": _experiment}

    def run(folder: Path, draw: random.Random, note: Note) -> None:
        name = draw.choice(list(readers))
        what, content = broken(draw, (home / f"{name}.yaml").read_bytes())
        note["kind"] = f"{name}: {what}"
        readers[name](folder, content)

    return run


def _config(folder: Path, content: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(config.load(path), RunConfig)
    except UserError as error:
        _check_names(path, error)


def _overrides(folder: Path, content: bytes) -> None:
    path = folder / ".hydra" / "overrides.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    config.save(compose_config(["trainer.max_steps=3", "tuner=dora", "optim.lr=1e-4"]), folder / "config.yaml")
    try:
        given = resume.apply([f"trainer.resume={folder}"])
        assert all(isinstance(item, str) for item in given)
    except UserError as error:
        _check_names(folder, error)


def _study(folder: Path, content: bytes) -> None:
    path = folder / "study.yaml"
    path.write_bytes(content)
    try:
        assert all(isinstance(item, str) for item in study.load(str(path)).overrides([]))
    except UserError as error:
        _check_names(path, error)


def _experiment(folder: Path, content: bytes) -> None:
    """The file of a user's own that `experiment=` chooses, beside those that are shipped."""
    shutil.copytree(registry.CONF, folder / "conf")
    (folder / "conf" / "experiment" / "mine.yaml").write_bytes(content)
    shipped, registry.CONF = registry.CONF, folder / "conf"
    try:
        assert isinstance(to_run_config(compose_config(["experiment=mine"])), RunConfig)
    except UserError as error:
        assert str(error).strip(), "no message"
    finally:
        registry.CONF = shipped


def _check_names(path: Path, error: UserError) -> None:
    assert str(path) in str(error), f"does not name its file: {error}"


def broken(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Returns what was done to a YAML file, and its content."""
    what = draw.choice(("bytes", "bytes", "cut off", "value", "value", "value", "key", "bomb", "hostile"))
    if what == "bytes":
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 3, 20))):
            changed[draw.randrange(len(changed))] = draw.choice((*b":-{}[]&*!#'\"\t\n%@`,?|> ", *range(256)))
        return what, bytes(changed)
    if what == "cut off":
        return what, content[: draw.randrange(len(content))]
    if what == "bomb":
        return what, _bomb(draw, content)
    if what == "hostile":
        return what, draw.choice(_HOSTILE)
    tree = yaml.safe_load(content)
    node, key = draw.choice(_places(tree))
    if what == "value":
        node[key] = draw.choice(_OTHERS)
    elif isinstance(node, dict) and draw.random() < 0.5:
        node[f"{key}x"] = node.pop(key)
    else:
        del node[key]
    return what, yaml.safe_dump(tree, allow_unicode=True).encode()


def _bomb(draw: random.Random, content: bytes) -> bytes:
    """Ten anchors, each of a list of nine of the one before: a billion entries in a few hundred bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    head = "\n".join(lines).encode() + b"\n"
    return head + (content if draw.random() < 0.5 else b"trainer: {resume: *a9}\n")


def _places(node: Any) -> list[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(node, key), *_places(node[key])]]


_OTHERS: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        7,
        1.5,
        float("nan"),
        float("inf"),
        10**40,
        "",
        "x",
        "???",
        "${",
        "${a.b}",
        "${seed}",
        "\u0000",
    ),
    *("${oc.env:HOME}", "${now:}", "${slug:}", [], {}, [[]], {"name": "no_such"}, {"a": {"b": [None]}}, ["x", 1, None]),
    *(
        {"_target_": "os.system", "command": "false"},
        "1e400",
        "'",
        "a=b",
        "=",
        "+x=1",
        "~tuner",
        "data.train='",
        "\ud7ff",
    ),
)
_HOSTILE = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"3",
        b"null",
        b"[]",
        b"- - - -",
        b"a: b: c",
        b"{",
        b"!!python/object/apply:os.getcwd []",
    ),
    *(
        b"&a [*a]",
        b"&a {a: *a}",
        b"a: &a\n  b: *a\n",
        b"? [a]\n: b",
        b"? {a: b}\n: c",
        b"- 1\n- 2",
        b"a: 1\na: 2",
        b"*a",
    ),
    *(
        b"[" * 5000,
        b"{a: " * 3000,
        b"- " * 5000,
        b"a:\n" + b" " * 50000 + b"b: 1",
        b"x: " + b"9" * 100000,
        b"--- a\n--- b",
    ),
    *(b"<<: [a]", b"tuner: {name: [lora]}", b"tuner: {name: {a: b}}", b"model: 3", b"tuner: null", b"defaults: 3"),
    *(b"defaults: [[a]]", b"defaults:\n- /data: no_such", b"defaults:\n- experiment: mine", b"defaults:\n- mine"),
    *(
        b"2026-13-45",
        b"a: 2026-01-01",
        b"a: 0x_",
        b"a: 1:60:61",
        b"a: !!binary '='",
        b"a: !!timestamp x",
        b"%YAML 9.9\n---\na",
    ),
    *(
        b"# @package ???\na: 1",
        b"# @package _global_.a.b\nc: 1",
        b"1: 2",
        b"true: 1",
        b"null: 1",
        b"1.5: 1",
        b"[a, b]: 1",
    ),
)
