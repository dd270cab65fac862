from harness.doctor import visual


def test_sizes_before_and_after_and_how_many_change(read_splits, write_rows, write_image, row, capsys):
    small, right, large = write_image("s.png", 32, 32), write_image("r.png", 96, 64), write_image("l.png", 320, 640)
    rows = [row("a", small, small), row("b", right), row("c", large), row("no answer at all")]
    rows[3]["messages"] = rows[3]["messages"][:1]
    _, (train,) = read_splits(
        f"data.train={write_rows(*rows)}", "data.image.min_tokens=4", "data.image.max_tokens=50", "data.on_error=skip"
    )
    found = visual.measure(train)["images"]
    assert (found["number"], found["shrunk"], found["enlarged"]) == (4, 1, 2)
    assert (found["spread"]["width"]["min"], found["spread"]["width"]["max"]) == (32, 320)
    assert (found["spread"]["height"]["min"], found["spread"]["height"]["max"]) == (32, 640)
    tokens = visual.image_tokens(train)
    assert tokens.tolist()[:3] == [4, 4, 6] and tokens.min() >= 4 and tokens.max() <= 50
    assert found["spread"]["tokens"]["total"] == tokens.sum() == train.samples.visual.sum()
    seen = found["spread"]["width as the model sees it"], found["spread"]["height as the model sees it"]
    assert (seen[0]["min"], seen[1]["min"]) == (64, 64) and seen[1]["max"] == 2 * seen[0]["max"]
    visual.show("train", visual.measure(train))
    out = capsys.readouterr().out
    assert "train: 4 images, 1 shrunk and 2 enlarged by the bounds on their tokens" in out and "video" not in out


def test_images_of_dropped_rows_do_not_count(read_splits, write_rows, write_image, row):
    image = write_image("a.png", 64, 64)
    rows = [row("a", image), row("word " * 300, image)]
    _, (train,) = read_splits(f"data.train={write_rows(*rows)}", "data.max_length=100")
    assert visual.measure(train)["images"]["number"] == 1


def test_row_bounds_take_the_place_of_those_of_the_config(read_splits, write_rows, write_image, row):
    rows = [row("a", write_image("a.png", 320, 320), max_pixels=64 * 64)]
    _, (train,) = read_splits(f"data.train={write_rows(*rows)}")
    found = visual.measure(train)["images"]
    assert (found["shrunk"], found["spread"]["tokens"]["max"]) == (1, 4)


def test_videos_have_frames_and_a_table_of_their_own(read_splits, write_rows, write_image, capsys):
    frames = [write_image(f"{number}.png", 64, 96) for number in range(6)]
    turns = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "x"}]
    _, (train,) = read_splits(f"data.train={write_rows({'messages': turns, 'videos': [frames]})}")
    found = visual.measure(train)
    assert found["images"]["number"] == 0 and found["videos"]["number"] == 1
    spread = found["videos"]["spread"]
    assert (spread["frames"]["max"], spread["width"]["max"], spread["height"]["max"]) == (6, 64, 96)
    assert spread["tokens"]["total"] == train.samples.visual.sum()
    visual.show("train", found)
    out = capsys.readouterr().out
    assert "train: 1 video\n" in out and "images" not in out
