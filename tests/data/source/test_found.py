import pytest

from harness.data.source.found import Kind
from harness.errors import UserError


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "txt"])
def test_a_file_is_of_the_kind_of_its_suffix(put, locate, kind):
    path = put(f"f.{kind.upper()}", "x")
    (found,) = locate(path)
    assert found.kind is Kind[kind] and found.name == found.path == path
    assert str(found.folder) == path.rpartition("/")[0]


def test_a_folder_gives_its_files_sorted_and_hidden_ones_not(put, locate, tmp_path):
    for name in ("b.jsonl", "a/z.csv", "a/b/c.txt", "a/picture.png", ".git/x.json", ".x.json", "dataset_infos.json"):
        put(f"d/{name}", "x")
    folder = str(tmp_path / "d")
    assert [found.name for found in locate(folder)] == [f"{folder}/{n}" for n in ("b.jsonl", "a/z.csv", "a/b/c.txt")]
    assert [found.name for found in locate(f"{folder}:a/a")] == [f"{folder}/a/{n}" for n in ("z.csv", "b/c.txt")] * 2


def test_names_stay_as_written_and_paths_are_the_same_rows(put, locate, tmp_path, monkeypatch):
    put("d/a.jsonl", "x")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "d" / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    names = ["d/a.jsonl", "./d/a.jsonl", "d", "link.jsonl", str(tmp_path / "d")]
    found = [one for name in names for one in locate(name)]
    assert [one.name for one in found][:4] == ["d/a.jsonl", "./d/a.jsonl", "d/a.jsonl", "link.jsonl"]
    assert len({one.identity for one in found}) == 1
    assert str(found[0].folder) == str(tmp_path / "d")


def test_saved_data_sets(saved, locate, tmp_path):
    rows = [{"query": "a", "response": "b"}]
    alone, several = saved(rows, "all/alone"), saved({"train": rows, "test": rows}, "all/several")
    other = saved({"left": rows}, "other")
    assert [(one.kind, one.name) for one in locate(alone)] == [(Kind.saved, alone)]
    assert [one.name for one in locate(several)] == [f"{several}/train"]
    assert [one.name for one in locate(f"{several}:test/train")] == [f"{several}/test", f"{several}/train"]
    assert [one.name for one in locate(other)] == [f"{other}/left"]
    assert [one.name for one in locate(f"{tmp_path}/all:alone")] == [alone]
    assert str(locate(alone)[0].folder) == alone
    assert [one.name for one in locate(f"{several}:all")] == [f"{several}/train", f"{several}/test"]
    assert [one.name for one in locate(f"{tmp_path}/all:all")] == [alone, f"{several}/test", f"{several}/train"]


def test_hub_ids(hub, locate):
    def described(text):
        return [(one.name, one.path, one.subset, one.split) for one in locate(text)]

    assert described("owner/name") == [("owner/name", "owner/name", None, None)]
    assert described("owner/name:b") == [("owner/name:b", "owner/name", "b", None)]
    assert described("owner/name:a/test") == [
        ("owner/name:a", "owner/name", "a", None),
        ("owner/name:test", "owner/name", None, "test"),
    ]
    assert [subset for _, _, subset, _ in described("owner/name:all")] == ["a", "b"]
    assert hub == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope.jsonl", "no such file$"),
        ("owner/nope.csv", "no such file$"),
        ("nope", "no such file or folder; a data set of the hub is named owner/name"),
        ("a/b/c", "no such file or folder; a data set of the hub"),
        ("owner/name:c", "has no subset 'c'; there are a, b, train, test, and all"),
        ("no/one:x", r"no such file or folder, and the hub does not give it \(ConnectionError: offline\)"),
        ("{d}/f.jsonl:x", "a file has no subsets"),
        ("{d}/f.PKL", r"\.pkl files can run code when they are read; convert it to \.jsonl or \.parquet"),
        ("{d}/f.pt", r"\.pt files can run code"),
        ("{d}/f.xlsx", r"not one of \.jsonl, \.json, \.csv, \.tsv, \.parquet, \.txt"),
        ("{d}/none", "the folder has no .* file and no saved data set"),
        ("{d}:nope", "has no sub-folder 'nope'; there are dict, mixed, none, several"),
        ("{d}/mixed", r"holds .*/train-0\.jsonl and .*/test-0\.jsonl, of different splits; name the files"),
        ("{d}/dict", "dataset_dict.json in it is broken"),
        ("{d}/several", r"has the splits a, b; choose with .*/several:a"),
        ("{d}/several:c", "has no sub-folder 'c'; there are a, b"),
    ],
)
def test_what_leads_nowhere(put, saved, hub, locate, tmp_path, text, message):
    for name in ("f.jsonl", "f.PKL", "f.pt", "f.xlsx", "none/picture.png", "mixed/data/train-0.jsonl"):
        put(name, "x")
    put("mixed/data/test-0.jsonl", "x")
    put("dict/dataset_dict.json", "[]")
    saved({"a": [{"x": 1}], "b": [{"x": 1}]}, "several")
    with pytest.raises(UserError, match=f"data.train=.*: {message}"):
        locate(text.format(d=tmp_path))


def test_a_folder_of_training_files_may_have_them_beside_others(put, locate, tmp_path):
    put("d/train/a.jsonl", "x")
    put("d/train/test_questions.jsonl", "x")
    put("d/contest.jsonl", "x")
    assert len(locate(str(tmp_path / "d"))) == 3
