import pytest

from harness.doctor import view


@pytest.fixture
def samples(read_splits, write_rows, write_image, row):
    def make(*rows, overrides=()):
        _, (train, *_) = read_splits(f"data.train={write_rows(*rows)}", *overrides)
        return train.samples

    return make


def text_of(found: dict) -> str:
    return "".join(view.marked(text, weight) for text, weight in found["stretches"])


def test_what_is_learnt_is_marked_and_an_image_is_one_word(samples, row, write_image):
    image = write_image("a.png", 96, 64)
    (found,) = view.measure(samples(row("a cat", image)), 0)
    assert text_of(found) == (
        "<|im_start|>user\n<|vision_start|>[image 4x6 patches = 6 tokens]<|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n⟦a cat<|im_end|>⟧\n"
    )
    assert "train.jsonl:1: " in found["title"] and "6 visual" in found["title"]


def test_two_images_side_by_side_stay_two(samples, row, write_image):
    wide, high = write_image("a.png", 96, 64), write_image("b.png", 64, 128)
    (found,) = view.measure(samples(row("a cat", wide, high)), 0)
    shown = [text for text, _ in found["stretches"] if text.startswith("[image")]
    assert shown == ["[image 4x6 patches = 6 tokens]", "[image 8x4 patches = 8 tokens]"]


def test_frames_of_a_video_are_told_apart_from_images(samples, write_image):
    frames = [write_image(f"{number}.png", 64, 64) for number in range(4)]
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "x"}]
    (found,) = view.measure(samples({"messages": turns, "videos": [frames]}), 0)
    text = text_of(found)
    assert text.count("[frames ") == 2 and " seconds><|vision_start|>[frames " in text


def test_weights_other_than_one_are_written(samples):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "no", "loss": False},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
    (found,) = view.measure(samples({"messages": turns}), 0)
    assert "⟦yes" in text_of(found) and "⟦no" not in text_of(found)
    assert view.marked("half", 0.5) == "⟦0.5: half⟧"


def test_long_stretches_are_cut_in_the_middle(samples, row):
    (found,) = view.measure(samples(row("word " * 1000)), 0)
    text = text_of(found)
    assert len(text) < 1000 and " characters ...] " in text and text.rstrip().endswith("<|im_end|>⟧")


def test_first_shortest_and_longest_are_among_the_five(samples, row):
    lengths = [5, 9, 1, 7, 3, 30, 8, 2, 6, 4]
    made = samples(*(row("word " * length) for length in lengths))
    for seed in range(5):
        chosen = view.choose(made, seed)
        assert chosen[:3] == [0, 2, 5] and len(set(chosen)) == 5
    assert view.choose(samples(row("a"), row("b")), 0) == [0, 1]


def test_brackets_stand_where_there_is_no_terminal(capsys):
    view.show([{"title": "rows.jsonl:1: 3 tokens", "stretches": [("ask ", 0.0), ("say\n", 1.0)]}])
    out = capsys.readouterr().out
    assert "what is learnt is in ⟦⟧" in out and "--- rows.jsonl:1: 3 tokens\nask ⟦say\n⟧" in out
    assert "\x1b" not in out


def test_colour_takes_the_place_of_brackets_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    view.show([{"title": "rows.jsonl:1", "stretches": [("ask [image 4x6 patches]", 0.0), ("say", 1.0)]}])
    out = capsys.readouterr().out
    assert "ask [image 4x6 patches]\x1b[1;32msay" in out and "⟦" not in out


def test_row_that_can_no_longer_be_read_is_said(samples, row, write_image, tmp_path):
    made = samples(row("a cat", write_image("a.png")))
    (tmp_path / "a.png").unlink()
    (found,) = view.measure(made, 0)
    assert "a.png" in found["title"] and found["stretches"] == []
