import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from harness.data.digits import QUESTION, DigitsConfig, build
from harness.data.row import Media
from harness.errors import UserError


@pytest.fixture(scope="module")
def sources():
    return build(DigitsConfig())


def _indices(rows):
    return [int(row.origin.removeprefix("digits:")) for row in rows]


def test_split_is_the_fixed_one_and_covers_every_digit_once(sources):
    train, val = _indices(sources.train), _indices(sources.val)
    assert (len(train), len(val)) == (1437, 360)
    assert sorted(train + val) == list(range(1797))
    assert train[:5] == [1346, 295, 257, 385, 1640]
    digest = hashlib.sha256(np.array(train + val, dtype="<i4").tobytes()).hexdigest()
    assert digest.startswith("8f8731c4fffa3690")


def test_answer_is_the_label_of_the_scan(sources):
    labels = load_digits().target
    for row in sources.val:
        assert row.messages[0].parts == (Media.image, QUESTION)
        assert row.messages[1].text == str(labels[int(row.origin.removeprefix("digits:"))])


def test_ink_is_dark_on_a_light_ground(sources):
    picture = sources.train[0].images[0].load()
    ink = load_digits().images[_indices(sources.train)[0]]
    assert picture.size == (64, 64) and picture.mode == "RGB"
    shrunk = np.asarray(picture.convert("L").resize((8, 8)), dtype=float)
    assert np.corrcoef(shrunk.ravel(), ink.ravel())[0, 1] < -0.95


def test_train_rows_takes_the_first_and_changes_the_fingerprint(sources):
    few = build(DigitsConfig(train_rows=16))
    assert _indices(few.train) == _indices(sources.train)[:16]
    assert _indices(few.val) == _indices(sources.val)
    assert few.fingerprint != sources.fingerprint
    assert build(DigitsConfig()).fingerprint == sources.fingerprint


def test_held_out_rows_come_from_training_and_leave_the_360_alone(sources):
    chosen = build(DigitsConfig(train_rows=100, held_out=30))
    assert _indices(chosen.train) == _indices(sources.train)[:70]
    assert _indices(chosen.val) == _indices(sources.train)[70:100]
    assert not set(_indices(chosen.val)) & set(_indices(sources.val))
    with pytest.raises(UserError, match=r"data\.held_out=100: give 1 to 99"):
        DigitsConfig(train_rows=100, held_out=100)


@pytest.mark.parametrize("rows", [0, 1438])
def test_train_rows_out_of_range(rows):
    with pytest.raises(UserError, match=rf"data\.train_rows={rows}: give 1 to 1437"):
        DigitsConfig(train_rows=rows)


def test_shared_checks_still_run():
    with pytest.raises(UserError, match=r"data\.workers=-1"):
        DigitsConfig(workers=-1)
