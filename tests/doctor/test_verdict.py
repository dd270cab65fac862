import pytest

from harness.data.assemble import data_module
from harness.doctor import decoding, verdict
from harness.errors import UserError


@pytest.fixture
def failures(read_splits):
    def find(*overrides: str) -> list[str]:
        config, splits = read_splits(*overrides)
        decoded = {split.name: decoding.measure(split, everything=True, workers=1, seed=0) for split in splits}
        return verdict.of_settings(config) + verdict.of_data(config, splits, decoded)

    return find


@pytest.fixture
def training(make_config, processor):
    """What training's own preparation says."""

    def prepare(*overrides: str) -> None:
        data_module(make_config("data=files", "data.cache_dir=null", *overrides), processor).prepare()

    return prepare


@pytest.fixture
def cases(write_rows, row):
    good, bad = write_rows(row(), row("b"), name="good.jsonl"), write_rows(row(), "{", "}", name="bad.jsonl")
    long = write_rows(row(), row("word " * 200), name="long.jsonl")
    longest = write_rows(row("word " * 300), name="longest.jsonl")
    silent = write_rows({"messages": [{"role": "assistant", "content": "x", "loss": False}]}, name="silent.jsonl")
    return {
        "bad rows": (
            (f"data.train={bad}",),
            "train: 2 rows can not be used: 2 not JSON (first: ",
        ),
        "bad validation rows": (
            (f"data.train={good}", f"data.val={bad}"),
            "val: 2 rows can not be used: 2 not JSON (first: ",
        ),
        "too long": (
            (f"data.train={long}", "data.max_length=50", "data.truncation=raise"),
            "train: 1 row over max_length, and data.truncation=raise (",
        ),
        "none left": (
            (f"data.train={silent}",),
            "no train row is left of 1: 1 no supervised token (first: ",
        ),
        "no validation left": (
            (f"data.train={good}", f"data.val={longest}", "data.max_length=50"),
            "no val row is left of 1: 1 over max_length (first: ",
        ),
        "generation without validation": (
            (f"data.train={good}", "data.generation.enabled=true"),
            "data.generation.enabled=true: there are no validation rows to answer",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        "bad rows",
        "bad validation rows",
        "too long",
        "none left",
        "no validation left",
        "generation without validation",
    ],
)
def test_what_ends_training_is_found_and_nothing_else(cases, failures, training, case):
    overrides, expected = cases[case]
    found = failures(*overrides)
    assert any(expected in message for message in found), found
    with pytest.raises(UserError):
        training(*overrides)


def test_skipping_forgives_bad_rows(failures, training, write_rows, row):
    overrides = (f"data.train={write_rows(row(), '{')}", "data.on_error=skip")
    assert failures(*overrides) == []
    training(*overrides)


def test_rows_that_are_dropped_are_no_failure(failures, training, write_rows, row):
    overrides = (f"data.train={write_rows(row(), row('word ' * 200))}", "data.max_length=50")
    assert failures(*overrides) == []
    training(*overrides)


def test_image_that_breaks_in_decoding_ends_training_unless_skipped(failures, write_rows, write_image, damage, row):
    image = write_image("a.png", 200, 200)
    damage(image)
    train = f"data.train={write_rows(row('a', image), row('b'))}"
    (found,) = failures(train)
    assert found.startswith("train: 1 image or video can not be decoded (") and "a.png" in found
    assert "data.on_error=skip" in found
    assert failures(train, "data.on_error=skip") == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.val_every_steps=5", "trainer.val_every_steps=5: there are no validation rows; give data.val"),
        ("trainer.load_best=true", "trainer.load_best=True: there are no validation rows; give data.val"),
        (
            "optim.schedule.name=reduce_lr_on_plateau",
            "optim.schedule.name=reduce_lr_on_plateau: there are no validation rows; give data.val",
        ),
    ],
)
def test_settings_that_need_validation_rows(failures, write_rows, row, override, expected):
    assert failures(f"data.train={write_rows(row())}", override) == [expected]


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_vision_that_should_train_without_images(failures, write_rows, write_image, row, tuner):
    text, shows = write_rows(row(), name="text.jsonl"), write_rows(row("a", write_image("a.png")), name="shows.jsonl")
    (found,) = failures(f"data.train={text}", "freeze=none", f"tuner={tuner}")
    assert found == "aligner, vit: should train, but no training row has an image; freeze it, freeze=vit_aligner"
    assert failures(f"data.train={shows}", "freeze=none", f"tuner={tuner}") == []


def test_modules_named_one_by_one_may_all_lie_in_the_llm(failures, write_rows, row):
    train = f"data.train={write_rows(row())}"
    assert failures(train, "freeze=none", "tuner.target_modules=[q_proj]") == []


def test_settings_that_this_machine_lacks(make_config, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = verdict.of_settings(make_config("trainer.accelerator=gpu"))
    assert found == ["trainer.accelerator=gpu: torch sees no GPU here; use cpu or auto"]
    assert verdict.of_settings(make_config()) == []


def test_rehearsal_says_what_preparation_says(make_config, processor, write_rows, row):
    config = make_config("data=files", "data.cache_dir=null", f"data.train={write_rows(row(), '{')}")
    (found,) = verdict.rehearse(config, processor)
    assert "train.jsonl:2: not JSON" in found
    assert verdict.rehearse(make_config("data=digits", "data.train_rows=4"), processor) == []
