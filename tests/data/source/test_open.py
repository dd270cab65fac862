import pytest

from harness.data.source.open import Opener, open_table
from harness.data.source.spec import parse
from harness.errors import UserError

FILES = {
    "a.jsonl": '{"query": "a", "response": "b"}\n',
    "b.json": '[{"query": "a", "response": "b"}]',
    "c.csv": "query,response\na,b\n",
    "d.tsv": "query\tresponse\na\tb\n",
    "e.txt": "a\n",
}


def test_files_of_each_kind_in_one_folder(put, options, tmp_path):
    for name, content in FILES.items():
        put(f"d/{name}", content)
    opener = Opener(options)
    assert opener.open("data.train", parse("data.train", str(tmp_path / "d"))) == [0, 1, 2, 3, 4]
    rows = [table.raw(0) for table in opener.tables]
    assert rows == [{"query": "a", "response": "b"}] * 4 + [{"text": "a"}]
    origins = [table.origin(0).rpartition("/")[2] for table in opener.tables]
    assert origins == ["a.jsonl:1", "b.json[0]", "c.csv:2", "d.tsv:2", "e.txt:1"]
    assert len({table.digest for table in opener.tables}) == 5
    assert {table.folder for table in opener.tables} == {tmp_path / "d"}


def test_a_file_that_is_named_twice_is_opened_once(put, options, tmp_path):
    path = put("d/a.jsonl", "{}")
    opener = Opener(options)
    numbers = [
        opener.open("data.train", parse("data.train", text)) for text in (path, str(tmp_path / "d"), f"{path}#3")
    ]
    assert numbers == [[0]] * 3 and len(opener.tables) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.csv", "d.tsv", "e.txt"])
def test_an_empty_file_is_named(put, options, locate, name):
    contents = ["", "\n \n", "\ufeff"] + (["a,b\n"] if name[0] == "c" else ["[]"] if name[0] == "b" else [])
    for content in contents:
        with pytest.raises(UserError, match=rf"data\.train=.*{name}: the file has no rows"):
            open_table(locate(put(name, content))[0], options)


def test_a_file_that_may_not_be_read(put, options, locate, tmp_path):
    (found,) = locate(put("a.jsonl", "{}"))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.train=.*a\.jsonl: can not be read \(No such file or directory\)"):
        open_table(found, options)
