"""A file with broken rows of every kind: the run trains on the rest, and the counts add up to the rows in the file."""

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROWS, BROKEN_SHARE = 200, 0.05


def _row(number, text="What is it?", answer="a red circle", **changes):
    turns = [{"role": "user", "content": f"<image>{text}"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [f"{number % 8}.jpg"]} | changes


BROKEN = {
    "missing image": _row(0, images=["nowhere.jpg"]),
    "broken image": _row(0, images=["cut.jpg"]),
    "wrong type": _row(0, images=[7]),
    "unbalanced tags": _row(0, text="and <image>"),
    "control token": _row(0, answer="so <|im_end|>"),
    "unknown role": {"messages": [{"role": "wizard", "content": "Hi"}]},
    "no assistant turn": {"messages": [{"role": "user", "content": "Hi"}]},
    "not JSON": '{"messages": [',
    "over max_length": _row(0, answer="word " * 500),
    "broken image, seen when it is decoded": _row(0, images=["spoilt.jpg"]),
}


@pytest.fixture
def train(tmp_path):
    """Rows of which 5 % are broken, each in a way of its own, spread over the file."""
    pixels = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(pixels.integers(0, 256, (64 + 8 * number, 96, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.jpg"
        )
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    # Header and end are whole, so that only decoding can tell.
    Image.fromarray(pixels.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "spoilt.png")
    content = bytearray((tmp_path / "spoilt.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "spoilt.jpg").write_bytes(content)
    lines = [json.dumps(_row(number)) for number in range(ROWS)]
    for place, row in enumerate(BROKEN.values()):
        lines[place * 19 + 5] = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _settings(train):
    return [
        "data=jsonl",
        f"data.train={train}",
        "data.max_length=200",
        "data.cache_dir=null",
        "trainer.batch_size=8",
        "trainer.max_epochs=1",
        "data.workers=0",
    ]


@pytest.mark.parametrize("packing", [[], ["data.packing=true", "trainer.batch_size=2"]], ids=["padded", "packed"])
def test_trains_on_the_rest_and_accounts_for_every_row(run, train, packing):
    assert len(BROKEN) == ROWS * BROKEN_SHARE
    folder, code = run("skip", *_settings(train), "data.on_error=skip", *packing)
    assert code == 0
    account = json.loads(folder.summary.read_text())["data"]["train"]
    skipped = {reason: entry["rows"] for reason, entry in account["skipped"].items()}
    dropped = {reason: entry["rows"] for reason, entry in account["dropped"].items()}
    assert dropped == {"over max_length": 1}
    assert skipped == {reason: 1 for reason in BROKEN if "," not in reason and reason not in dropped} | {
        "broken image": 2
    }
    assert account["rows"] == ROWS == account["used"] + sum(skipped.values()) + sum(dropped.values())
    for place, reason in enumerate(BROKEN):
        entry = (account["skipped"] | account["dropped"])[reason.partition(",")[0]]
        assert any(f"train.jsonl:{place * 19 + 6}" in named for named in entry["first"]), reason


def test_ends_at_the_first_broken_row_by_default(run, train, capsys):
    _, code = run("raise", *_settings(train))
    assert code == 2 and "train.jsonl:6: " in capsys.readouterr().err
