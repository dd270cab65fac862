import pytest

from harness.doctor import decoding


@pytest.fixture
def five(read_splits, write_rows, write_image, damage, row):
    """A training split of five rows with seven images, two of which are damaged in the middle."""
    names = [write_image(f"{number}.png", 200, 200, seed=number) for number in range(7)]
    rows = [row("a", *names[:2]), row("b"), row("c", names[2]), row("d", *names[3:6]), row("e", names[6])]
    for number in (4, 6):
        damage(names[number])
    _, (train,) = read_splits(f"data.train={write_rows(*rows)}")
    return train


def test_damage_in_the_middle_of_a_file_is_found_and_named(five, capsys):
    assert five.account.skipped.total == 0
    found = decoding.measure(five, everything=True, workers=1, seed=0)
    assert (found["media"], found["decoded"], decoding.number_broken(found)) == (7, 7, 2)
    first = found["broken"]["broken image"]["first"]
    assert "train.jsonl:4: image" in first[0] and "4.png" in first[0] and "can not be decoded" in first[0]
    assert "train.jsonl:5: image" in first[1] and "6.png" in first[1]
    decoding.show("train", found)
    assert "train: decoded all of 7 images and videos, 2 broken" in capsys.readouterr().out
    assert decoding.findings("train", found) == ["train: 2 of 7 decoded images and videos are broken"]


def test_worker_processes_find_the_same(five, monkeypatch):
    alone = decoding.measure(five, everything=True, workers=1, seed=0)
    monkeypatch.setattr(decoding, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(decoding, "_CHUNK", 2)
    assert decoding.measure(five, everything=True, workers=2, seed=0) == alone


def test_sample_is_drawn_from_all_images_by_the_seed(five, monkeypatch, capsys):
    monkeypatch.setattr(decoding, "SAMPLE", 3)
    drawn = {tuple(decoding._some(decoding._media(five), five, seed)[:, 0].tolist()) for seed in range(20)}
    assert len(drawn) > 3 and {row for rows in drawn for row in rows} == {0, 2, 3, 4}
    found = decoding.measure(five, everything=False, workers=1, seed=0)
    assert (found["media"], found["decoded"]) == (7, 3)
    decoding.show("train", found)
    assert "decoded 3 at random (--decode takes all) of 7" in capsys.readouterr().out


def test_row_that_is_gone_since_is_named(five, tmp_path):
    (tmp_path / "2.png").unlink()
    found = decoding.measure(five, everything=True, workers=1, seed=0)
    assert found["broken"]["missing image"]["number"] == 1


def test_text_has_nothing_to_decode(read_splits, write_rows, row, capsys):
    _, (train,) = read_splits(f"data.train={write_rows(row('a'))}")
    found = decoding.measure(train, everything=False, workers=None, seed=0)
    assert found == {"media": 0, "decoded": 0, "broken": {}}
    decoding.show("train", found)
    assert capsys.readouterr().out == ""


def test_frames_of_a_video_are_decoded(read_splits, write_rows, write_image, damage):
    frames = [write_image(f"f{number}.png", 160, 160, seed=number) for number in range(4)]
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "a cat"}]
    damage(frames[2])
    _, (train,) = read_splits(f"data.train={write_rows({'messages': turns, 'videos': [frames]})}")
    found = decoding.measure(train, everything=False, workers=1, seed=0)
    assert found["decoded"] == 1 and "f2.png" in found["broken"]["broken image"]["first"][0]
