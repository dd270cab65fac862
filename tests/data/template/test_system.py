import pytest

from harness.data.template.system import system_text
from harness.errors import UserError


def test_text_stands_for_itself():
    assert system_text("Be brief.") == "Be brief."
    assert system_text("Write to\nnotes.txt") == "Write to\nnotes.txt"
    assert system_text(None) is None and system_text("") is None


def test_a_file_is_read(tmp_path):
    path = tmp_path / "System.TXT"
    path.write_bytes("\ufeffSei kurz.\n\nÜbe.\n".encode())
    assert system_text(str(path)) == "Sei kurz.\n\nÜbe."


@pytest.mark.parametrize("name", ["missing.txt", "folder.txt", "x" * 5000 + ".txt", "nul\0.txt"])
def test_a_path_that_names_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match=r"data\.system=.*\.txt: no such file; a text must not end with \.txt"):
        system_text(str(tmp_path / name))


def test_files_that_hold_no_text_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"data\.system=.*a\.txt: is not UTF-8"):
        system_text(str(path))
    path.write_text("\n")
    with pytest.raises(UserError, match="the file is empty; give null"):
        system_text(str(path))
