"""docs/parameters.md: a row for every parameter of the spec, keys that compose, defaults that are the code's."""

import functools
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from harness import registry
from harness.config import RunConfig

registry.load()
DOCS = Path(__file__).parent.parent / "docs"
SPEC: dict[str, dict[str, list[str]]] = yaml.safe_load((DOCS / "spec_parameters.yaml").read_text(encoding="utf-8"))
WITHOUT_ROWS = {
    *("vllm", "sglang", "lmdeploy", "rlhf", "reward/teacher model", "ppo", "grpo", "cosine reward function"),
    *("repetition penalty function", "soft overlong reward", "inference", "deployment", "rollout", "web-ui", "app"),
    *("evaluation", "export", "sampling", "mcts", "specific model"),
}
"""Sections that do not concern supervised training: a mention in a list is enough."""
ELSEWHERE = re.compile(r"as it is|\*\*(no|not yet)\*\*")
"""What may stand in the second column instead of a key."""
ROOT: dict[str, str] = {}
"""What the command line chooses for each group where it says nothing."""
for item in yaml.safe_load((registry.CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]:
    ROOT |= item if isinstance(item, dict) else {}


@dataclass(frozen=True)
class Row:
    names: list[str]
    here: str
    default: str
    there: str
    note: str


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def read() -> tuple[list[Row], str]:
    """Returns the rows of the page's tables, and all else."""
    rows, rest = [], []
    for line in (DOCS / "parameters.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            rest.append(line)
        elif not line.startswith(("| ms-swift |", "|---")):
            names, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
            assert len(cells) == 4, line
            rows.append(Row(code(names), *cells))
    return rows, "\n".join(rest)


def split(span: str) -> tuple[dict[str, str], list[str]]:
    """Splits `data=files data.train` into choices of groups and keys, with values where they have one."""
    parts = span.split()
    chosen = [part for part in parts if part.partition("=")[0] in registry.GROUPS]
    keys = [part for part in parts if part not in chosen and not part.startswith("-")]
    return dict(part.split("=", 1) for part in chosen), keys


def place(key: str) -> tuple[str, str]:
    """Splits `memory.strategy.shard_size` into the innermost group and the key below it."""
    found = [group for group in registry.GROUPS if key.startswith(registry.key_of(group) + ".")]
    group = max(found, key=len, default=key.partition(".")[0])
    return group, key[len(group) + 1 :]


@functools.cache
def option_file(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((registry.CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))


@functools.cache
def schema(group: str, option: str) -> DictConfig:
    """A choice's dataclass as it is without its YAML."""
    name = option_file(group, option)["defaults"][0].rpartition("/")[2]
    return OmegaConf.structured(registry.get(group, name).config)


@functools.cache
def composed(group: str, option: str) -> DictConfig:
    """A choice's YAML over its schema, which is what Hydra makes of it: tests/test_conf.py composes each."""
    content = dict(option_file(group, option))
    assert content.pop("defaults")[1:] == ["_self_"]
    return OmegaConf.merge(schema(group, option), content)


def spelt(value: Any) -> str:
    """Spells a value as the command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(spelt, value))}]"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value.name if isinstance(value, Enum) else {"???": "required"}.get(str(value), str(value))


def defaults_of(span: str) -> list[str]:
    """The defaults of the keys in a span; of a choice alone, what the root chooses."""
    choices, keys = split(span)
    if not keys:
        return [ROOT[group] for group in choices]
    found = []
    for key in (item.partition("=")[0] for item in keys):
        group, path = place(key)
        if key == "seed":
            found.append(spelt(RunConfig.__dataclass_fields__["seed"].default))
        elif group != "hydra" and "*" not in path:
            tree = OmegaConf.to_container(schema(group, (ROOT | choices)[group]))
            found.append(spelt(functools.reduce(lambda node, name: node[name], path.split("."), tree)))
    return found


ROWS, REST = read()
ANSWERED = [row for row in ROWS if not ELSEWHERE.match(row.here)]
KEY = re.compile(rf"({'|'.join(registry.GROUPS)})[.=][\w.,=\[\]* -]+$|seed")
TEXT = "\n".join([*(row.note for row in ROWS), REST])
SPANS = sorted({span for row in ANSWERED for span in code(row.here)} | set(filter(KEY.match, code(TEXT))))


def test_every_parameter_of_the_spec_has_a_row_or_where_it_does_not_train_a_mention():
    in_rows = {name for row in ROWS for name in row.names}
    mentioned = in_rows | set(code(REST))
    missing = [
        f"{page}, {section}: {name}"
        for page, sections in SPEC.items()
        for section, names in sections.items()
        for name in names
        if name not in (mentioned if section in WITHOUT_ROWS else in_rows)
    ]
    assert not missing, "\n".join(["docs/parameters.md has no row for", *missing])


def test_no_row_is_about_a_parameter_that_the_spec_has_not():
    known = {name for sections in SPEC.values() for names in sections.values() for name in names}
    assert {name for row in ROWS for name in row.names} <= known


def test_every_row_says_where_or_why():
    assert len(ROWS) > 200
    for row in ROWS:
        assert row.there, row
        assert (row in ANSWERED and code(row.here)) or (ELSEWHERE.match(row.here) and row.note), row


@pytest.mark.parametrize("span", SPANS)
def test_keys_that_it_names_compose(span):
    choices, keys = split(span)
    for group, option in choices.items():
        composed(group, option)
    for key, _, value in (item.partition("=") for item in keys):
        group, path = place(key.removesuffix(".*"))
        if group in ("seed", "hydra"):
            continue
        config = composed(group, (ROOT | choices)[group])
        absent = OmegaConf.select(config, path, throw_on_missing=False, default="absent") == "absent"
        assert not absent, f"{key} is no key of {group}={(ROOT | choices)[group]}"
        if value and not OmegaConf.missing_keys(config):
            OmegaConf.to_object(OmegaConf.merge(config, OmegaConf.from_dotlist([f"{path}={value}"])))


@pytest.mark.parametrize("row", ANSWERED, ids=lambda row: row.names[0])
def test_defaults_here_are_those_of_the_code(row):
    """Equal ones stand once."""
    expected = [default for span in code(row.here) for default in defaults_of(span)]
    assert code(row.default) == list(dict.fromkeys(expected))
