"""memory=auto chooses micro-batch and policy before weights are read, and says what fits where nothing does."""

import pytest
import torch

from harness.data.assemble import data_module
from harness.data.extent import Extent
from harness.errors import UserError
from harness.memory import fitting
from harness.memory.outline import outline
from harness.memory.prediction import SPARE, SPARE_GIB

CPU = torch.device("cpu")
BATCH = ("memory=auto", "trainer.batch_size=6", "trainer.accumulate=2", "trainer.accelerator=cpu")


def extent_of(size):
    return Extent(size * 4096, size * 1024, size * 1024)


@pytest.fixture
def fits(make_config):
    def make(*overrides):
        config = make_config(*BATCH, *overrides)
        return fitting.candidates(config, outline(config), extent_of, CPU, False)

    return make


def test_micro_batches_divide_the_global_batch(fits):
    sizes = {(fit.batch_size, fit.accumulate) for fit in fits()}
    assert sizes == {(6, 2), (4, 3), (3, 4), (2, 6), (1, 12)}


@pytest.mark.parametrize(
    "choice",
    [
        ["memory.checkpointing=full"],
        ["tuner=full", "optim=galore", "optim.rank=8", "optim.max_grad_norm=null", "optim.per_parameter=true"],
    ],
    ids=" ".join,
)
def test_what_was_chosen_by_hand_stays(fits, make_config, choice):
    if "optim=galore" in choice:
        choice = [*choice, "trainer.accumulate=1"]
    assert {fit.batch_size for fit in fits(*choice)} == {6}


def test_the_fastest_that_fits_is_taken(fits):
    found = fits()
    largest = fitting.best(found, 1000.0)
    assert (largest.batch_size, largest.prediction.plan.checkpointing) == (6, "none")
    room = (largest.prediction.peak_gib - 0.01) * SPARE + SPARE_GIB
    smaller = fitting.best(found, room)
    assert smaller.prediction.needed_gib <= room and smaller.time() > largest.time()
    assert all(fit.time() >= smaller.time() for fit in found if fit.prediction.needed_gib <= room)
    assert fitting.best(found, SPARE_GIB) is None


def test_what_does_not_fit_is_refused_with_what_does(make_config, fits):
    config, found = make_config(*BATCH, "tuner=full", "freeze=none"), fits("tuner=full", "freeze=none")
    smallest = fitting.least(found)
    room = smallest.prediction.needed_gib - 0.004
    message = str(fitting.refusal(config, smallest, CPU, False, room))
    assert "memory.checkpointing=auto: trainer.batch_size=1 trainer.accumulate=12 memory.checkpointing=full" in message
    assert "what fits: optim=adamw_8bit trainer.batch_size=1" in message
    assert "nothing near it fits" in str(fitting.refusal(config, smallest, CPU, False, SPARE_GIB))


def test_a_shorter_pack_is_proposed(make_config):
    choice = [*BATCH, "data.packing=true", "data.packing_length=4096"]
    config = make_config(*choice)
    found = fitting.candidates(config, outline(config), extent_of, CPU, False)
    smallest = fitting.least(found)
    message = str(fitting.refusal(config, smallest, CPU, False, smallest.prediction.needed_gib - 0.004))
    assert "what fits: data.packing_length=2048 trainer.batch_size=1" in message


def test_data_is_dealt_out_anew_and_plans_ahead(make_config, processor, monkeypatch):
    config = make_config(*BATCH, "data.train_rows=24", "data.workers=0")
    data = data_module(config, processor)
    data.prepare()
    data.total_steps = 2
    steps = data.steps(1, 1)
    whole = data.largest_batch().tokens
    # Room for all: nothing changes; too little for anything: refused before a weight is read.
    assert fitting.plan_ahead(config, data, CPU, 1000.0).batch_size == 6
    with pytest.raises(UserError, match="nothing near it fits"):
        fitting.plan_ahead(config, data, CPU, SPARE_GIB)
    data.resize(2, 6)
    assert data.steps(1, 1) == steps and data.largest_batch().tokens * 3 == whole
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 1})()
    batches = list(data.train_dataloader())
    assert [len(batch.input_ids) for batch in batches] == [2] * 12
    assert len({batch.step_supervised for batch in batches[:6]}) == 1


def test_without_a_model_of_it_the_micro_batch_stays(make_config, processor, caplog):
    caplog.set_level("INFO")
    config = make_config(*BATCH, "tuner=boft", "data.train_rows=24")
    data = data_module(config, processor)
    data.prepare()
    assert fitting.plan_ahead(config, data, CPU, 1000.0) is None
    assert "trainer.batch_size is left as it is: tuner=boft" in caplog.text
