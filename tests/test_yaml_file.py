import time

import pytest

from harness.errors import UserError
from harness.yaml_file import read_yaml

BOMB = "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "more than 100,000 values, counting what its anchors repeat"),
        ("&a [*a]", "nested too deeply, or an anchor holds itself"),
        ("[" * 5000, "nested too deeply"),
        (b"\xff", "not readable as YAML .*utf-8"),
        ("a: `b`", "not readable as YAML .*cannot start any token"),
        ("a: 1\na: 2", "not readable as YAML"),
        *((f"a: !!{tag}", "not readable as YAML") for tag in ("timestamp x", "bool maybe", "int ''", "float _")),
        ("", "neither a mapping nor a list"),
        ("3", "neither a mapping nor a list"),
    ],
)
def test_what_is_wrong_is_told_by_the_files_name_and_soon(tmp_path, content, reason):
    path, begun = tmp_path / "config.yaml", time.monotonic()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"{path}: .*{reason}"):
        read_yaml(path)
    assert time.monotonic() - begun < 5


def test_anchors_that_repeat_little_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {lr: 1e-4}\nb: *a\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"lr": 1e-4}, "b": {"lr": 1e-4}}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: not readable as YAML \(.*No such file"):
        read_yaml(tmp_path / "none.yaml")
