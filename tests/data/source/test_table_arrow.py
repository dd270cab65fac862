import builtins
import io
import os
import pickle

import pytest

from harness.data.row_error import RowError
from harness.data.source import table_arrow
from harness.data.source.found import Kind
from harness.data.source.table_arrow import open_hub, open_parquet, open_saved
from harness.errors import UserError

ROWS = [{"query": f"q{i}", "response": "r"} for i in range(5)]


@pytest.fixture
def parquet(tmp_path):
    def write(rows=ROWS, features=None):
        import datasets

        path = str(tmp_path / "f.parquet")
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        return path

    return write


@pytest.fixture
def shown(picture):
    """A row with an image of its own and one in a list, and its features."""
    import datasets

    content = io.BytesIO()
    picture(6, 4).save(content, "PNG")
    image = {"bytes": content.getvalue(), "path": None}
    features = datasets.Features({"image": datasets.Image(), "more": datasets.List(datasets.Image())})
    return {"image": image, "more": [image]}, features


def test_parquet_by_number(parquet, of_kind, tmp_path):
    table = open_parquet(of_kind(Kind.parquet, parquet(), "f.parquet"), tmp_path / "cache")
    assert [table.raw(i) for i in range(len(table))] == ROWS
    assert table.origin(3) == "f.parquet[3]" and table.folder == tmp_path
    assert pickle.loads(pickle.dumps(table)).raw(4) == ROWS[4]
    assert (tmp_path / "cache" / "datasets").is_dir()


def test_images_stay_undecoded_bytes(parquet, saved, of_kind, shown, tmp_path):
    row, features = shown
    assert open_parquet(of_kind(Kind.parquet, parquet([row], features)), tmp_path).raw(0) == row
    assert open_saved(of_kind(Kind.saved, saved([row], features=features))).raw(0) == row


def test_a_saved_folder_by_number_and_its_digest(saved, of_kind):
    one, same, other = (open_saved(of_kind(Kind.saved, saved(rows, name))) for rows, name in [
        (ROWS, "a"), (ROWS, "b"), (ROWS[:3], "c")
    ])  # fmt: skip
    assert [one.raw(i) for i in range(len(one))] == ROWS
    assert one.digest == open_saved(of_kind(Kind.saved, one.folder.as_posix())).digest
    assert other.digest != one.digest != ""
    assert len(same) == 5


def test_the_digest_of_parquet_follows_the_content(parquet, of_kind, tmp_path):
    first = open_parquet(of_kind(Kind.parquet, parquet()), tmp_path / "1").digest
    again = open_parquet(of_kind(Kind.parquet, parquet()), tmp_path / "2").digest
    other = open_parquet(of_kind(Kind.parquet, parquet([{"query": "x", "response": "y"}] * 5)), tmp_path / "3").digest
    assert first == again != other


def test_rows_that_python_does_not_have(of_kind, tmp_path):
    import pyarrow
    import pyarrow.parquet

    buffers = pyarrow.array([b"\xff", b"ok"], pyarrow.binary()).buffers()
    broken = pyarrow.StringArray.from_buffers(2, buffers[1], buffers[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "f.parquet")
    table = open_parquet(of_kind(Kind.parquet, str(tmp_path / "f.parquet"), "f.parquet"), tmp_path / "cache")
    assert table.raw(1) == {"text": "ok"}
    with pytest.raises(RowError, match=r"f\.parquet\[0\]: can not be read from Arrow"):
        table.raw(0)


def test_files_that_can_not_be_read(put, parquet, of_kind, tmp_path):
    for content in (b"", b"PAR1", b"x" * 100, b"PAR1" + b"\xff\xff\xff\x7fPAR1"):
        with pytest.raises(UserError, match=r"data\.train=f: not a parquet file, or not whole"):
            open_parquet(of_kind(Kind.parquet, put("f", content), "f"), tmp_path)
    with pytest.raises(UserError, match=r"data\.train=f: can not be read \(\w+: "):
        open_parquet(of_kind(Kind.parquet, put("f", b"PAR1xxxx\x04\x00\x00\x00PAR1"), "f"), tmp_path)
    with pytest.raises(UserError, match=r"data\.cache_dir=null: f is read through a copy on disk; give a folder"):
        open_parquet(of_kind(Kind.parquet, parquet(), "f"), None)
    os.mkdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"data\.train=f: can not be read \(\w+: "):
        open_saved(of_kind(Kind.saved, str(tmp_path / "empty"), "f"))


def test_the_hub(hub, of_kind, tmp_path):
    table = open_hub(of_kind(Kind.hub, "owner/name"), tmp_path)
    assert table.raw(2) == {"query": "None train 2", "response": "r"} and table.origin(2) == "owner/name[2]"
    assert hub == [("owner/name", None, "train", {"cache_dir": str(tmp_path / "datasets")})]
    message = (
        r"data\.train=no/one: no such file or folder, and the hub does not give it \(ConnectionError: Couldn't .*\)$"
    )
    with pytest.raises(UserError, match=message):
        open_hub(of_kind(Kind.hub, "no/one"), tmp_path)


def test_without_the_package_the_error_names_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="the package datasets: pip install datasets"):
        table_arrow.library()
