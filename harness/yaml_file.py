"""Reads a YAML file from a run's folder or a user's hand: whatever is wrong with it is told by its name."""

from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.errors import UserError

UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RecursionError,
    yaml.YAMLError,
    OmegaConfBaseException,
)
"""What PyYAML and OmegaConf raise on a broken file: the constructors of tags (`!!bool maybe`) check nothing."""

_MAX_NODES = 100_000
"""Values, with what anchors repeat: ten anchors, each a list of nine of the one before, are a billion."""


def read_yaml(path: Path) -> DictConfig | ListConfig:
    """Returns the file's mapping or list.

    Raises:
        UserError: It can not be read, is not YAML, holds neither, or more than any config.
    """
    text, root = parse(path)
    if root is None or isinstance(root, yaml.ScalarNode):
        raise UserError(f"{path}: holds neither a mapping nor a list")
    try:
        return OmegaConf.create(text)
    except UNREADABLE as error:
        raise UserError(f"{path}: not readable as YAML ({first_line(error)})") from error


def parse(path: Path) -> tuple[str, yaml.Node | None]:
    """Returns a YAML file's text and its nodes, of which there are not too many for a reader.

    Raises:
        UserError: It can not be read, is not YAML, or holds more values than any config.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = 0 if root is None else _size(root, {})
    except RecursionError as error:
        raise UserError(f"{path}: is nested too deeply, or an anchor holds itself") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not readable as YAML ({first_line(error)})") from error
    if size > _MAX_NODES:
        raise UserError(f"{path}: holds more than {_MAX_NODES:,} values, counting what its anchors repeat")
    return text, root


def first_line(error: Exception) -> str:
    """Returns what an error says, in one line that is not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts values as often as they stand there; an anchor within itself recurses without end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        inner = [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(item, known) for item in inner)
    return known[id(node)]
