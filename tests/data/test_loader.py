import time

import pytest
import torch

from harness.data.image import ImageRef
from harness.data.loader import StepLoader, load
from harness.data.row import Message, Row
from harness.errors import UserError


@pytest.fixture
def samples(encoder, make_row):
    answers = ["A", "A much longer answer", "B", "", "Some answer", "C", "D"]
    return [
        encoder.encode(make_row(("user", (64, 64), "Hi"), ("assistant", text), origin=f"f:{number}"))
        for number, text in enumerate(answers)
    ]


def _loader(samples, encoder, **changes):
    settings = {"seed": 1, "batch_size": 2, "accumulate": 3, "world_size": 1, "rank": 0, "shuffle": True}
    return StepLoader(samples, encoder, **(settings | {"workers": 0, "start": 0, "num_batches": 9} | changes))


def _seen(loader):
    return [(batch.origins, batch.step_supervised, batch.targets.tolist()) for batch in loader]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(samples, encoder, workers):
    assert _seen(_loader(samples, encoder, workers=workers)) == _seen(_loader(samples, encoder))


def test_each_batch_knows_the_supervised_tokens_of_its_step(samples, encoder):
    batches = list(_loader(samples, encoder, num_batches=8))
    assert len(batches) == 8
    # Two whole steps and the two batches of an unfinished third.
    for step in (batches[:3], batches[3:6], batches[6:]):
        assert {batch.step_supervised for batch in step} == {sum(batch.num_supervised for batch in step)}


def test_resume_gives_the_tail(samples, encoder):
    assert _seen(_loader(samples, encoder, start=3, num_batches=6)) == _seen(_loader(samples, encoder))[3:]
    with pytest.raises(AssertionError, match="between optimiser steps"):
        _loader(samples, encoder, start=2)


def test_starting_workers_leaves_the_global_random_state(samples, encoder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(_loader(samples, encoder, workers=1, num_batches=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_loader_has_no_length(samples, encoder):
    assert not hasattr(_loader(samples, encoder), "__len__")


def test_wait_is_counted_once(samples, encoder, monkeypatch):
    loader = _loader(samples, encoder, num_batches=3)
    monkeypatch.setattr(encoder, "pixels", lambda sample: time.sleep(0.01), raising=True)
    assert loader.take_wait_seconds() == 0
    list(loader)
    assert loader.take_wait_seconds() >= 0.06
    assert loader.take_wait_seconds() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_mistake_keeps_its_message(encoder, picture, tmp_path, workers):
    path = tmp_path / "p.jpg"
    picture(64, 64).save(path)
    row = Row((Message("user", (None,)), Message("assistant", ("Yes",))), (ImageRef(str(path), "f:8"),), "f:8")
    samples = [encoder.encode(row)]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"^f:8: image '.*p\.jpg' can not be decoded \([^\n]*\)$"):
        list(_loader(samples, encoder, workers=workers))


def test_other_errors_are_crashes_with_their_traceback():
    def make(rows):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(load(make, [[0]], workers=1))
