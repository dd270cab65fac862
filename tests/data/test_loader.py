import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from harness.data import loader as data_loader
from harness.data.layout import PADDED, Kind, Layout
from harness.data.loader import MakeBatch, Planned, StepLoader, load
from harness.data.media.image import ImageRef
from harness.data.order import micro_batches
from harness.data.row import Media, Message, Row
from harness.errors import UserError


@pytest.fixture
def samples(encoder, make_row):
    answers = ["A", "A much longer answer", "B", "", "Some answer", "C", "D"]
    return [
        encoder.encode(make_row(("user", (64, 64), "Hi"), ("assistant", text), origin=f"f:{number}"))[0]
        for number, text in enumerate(answers)
    ]


@pytest.fixture
def broken(encoder, picture, tmp_path):
    """A sample whose picture was damaged after its header was read."""
    path = tmp_path / "p.jpg"
    picture(64, 64).save(path)
    turns = (Message("user", (Media.image,)), Message("assistant", ("Yes",)))
    row = Row(messages=turns, images=(ImageRef(str(path), "f:8"),), origin="f:8")
    (sample,) = encoder.encode(row)
    path.write_bytes(path.read_bytes()[:-500])
    return sample


def _loader(samples, encoder, *, skip=False, layout=PADDED, start=0, num_batches=9, workers=0, told=None):
    def plan():
        for numbers in micro_batches(1, len(samples), 2, 1, 0, True, start):
            units = [np.array([number]) for number in numbers]
            yield Planned(units, sum(samples[int(number)].num_supervised for number in numbers))

    make = MakeBatch(samples, encoder, layout, skip)
    heard = (lambda skipped: None) if told is None else told.extend
    return StepLoader(make, plan(), accumulate=3, num_batches=num_batches, workers=workers, on_skipped=heard)


def _seen(loader):
    return [(batch.origins, batch.step_supervised, batch.targets.tolist()) for batch in loader]


def test_workers_make_as_many_batches_ahead_as_told(samples, encoder, monkeypatch):
    seen = {}
    original = data_loader.DataLoader
    monkeypatch.setattr(data_loader, "DataLoader", lambda *a, **k: seen.update(k) or original(*a, **k))
    next(load(len, [[1]], 1, 5))
    assert seen["prefetch_factor"] == 5


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


def test_starting_workers_leaves_the_global_random_state(samples, encoder):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(_loader(samples, encoder, workers=1, num_batches=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_loader_has_no_length(samples, encoder):
    assert not hasattr(_loader(samples, encoder), "__len__")


def test_wait_is_counted_once(samples, encoder, monkeypatch):
    loader = _loader(samples, encoder, num_batches=3)
    load_sample = encoder.load
    monkeypatch.setattr(encoder, "load", lambda *sample: (time.sleep(0.01), load_sample(*sample))[1])
    assert loader.take_wait_seconds() == 0
    list(loader)
    assert loader.take_wait_seconds() >= 0.06
    assert loader.take_wait_seconds() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_mistake_keeps_its_message(broken, encoder, workers):
    with pytest.raises(UserError, match=r"^f:8: image '.*p\.jpg' can not be decoded [^\n]*$"):
        list(_loader([broken], encoder, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_fails_is_left_out_and_the_steps_sum_knows(samples, broken, encoder, workers):
    told = []
    batches = list(_loader([*samples, broken], encoder, skip=True, workers=workers, num_batches=12, told=told))
    assert {origin for origin, _, _ in told} == {"f:8"} and len(told) == 3
    assert told[0][1] == "broken image" and all("f:8" not in batch.origins for batch in batches)
    assert sum(batch.num_samples for batch in batches) == 12 * 2 - 3
    for step in (batches[:3], batches[3:6], batches[6:9], batches[9:]):
        assert {batch.step_supervised for batch in step} == {sum(batch.num_supervised for batch in step)}


def test_a_batch_of_which_nothing_is_left_keeps_its_place(broken, encoder):
    for layout in (PADDED, Layout(Kind.packed, 64), Layout(Kind.joined)):
        batches = list(_loader([broken], encoder, skip=True, layout=layout, num_batches=3))
        assert [batch.num_samples for batch in batches] == [0, 0, 0]


def test_workers_outlive_signals_that_ask_a_run_to_end():
    def make(number):
        return os.getpid(), number

    batches = load(make, range(20), workers=1, prefetch=1)
    pid, _ = next(batches)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(pid, number)
    assert list(batches) == [(pid, number) for number in range(1, 20)]


LEFT_ALONE = """
import itertools
import multiprocessing
from harness.data.loader import load

def begin():
    global batches
    batches = load(str, itertools.count(), workers=2)
    next(batches)
    raise SystemExit(7)

child = multiprocessing.get_context("fork").Process(target=begin)
child.start()
child.join(20)
assert child.exitcode == 7, child.exitcode
begin()
"""


def test_a_process_ends_though_its_workers_are_busy():
    done = subprocess.run([sys.executable, "-c", LEFT_ALONE], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_worker_that_hangs_ends_with_its_loader(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = load(lambda seconds: time.sleep(seconds) or os.getpid(), [0, 600], workers=1, prefetch=2)
    pid = next(batches)
    del batches
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_other_errors_are_crashes_with_their_traceback():
    def make(rows):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(load(make, [[0]], workers=1))
