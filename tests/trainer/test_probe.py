"""The largest planned batches are tried before the first step, and nothing after it changes."""

import copy

import pytest
import torch

from harness import registry
from harness.data.assemble import data_module
from harness.errors import UserError
from harness.trainer import probe as probes
from harness.trainer.module import TrainingModule
from harness.trainer.probe import Probe
from harness.trainer.replay import watch

QUICK = (
    "data.train_rows=34",
    "data.held_out=2",
    "data.generation.enabled=false",
    "data.workers=0",
    "trainer.batch_size=4",
)


@pytest.fixture
def train(make_config, make_tuned, processor):
    def run(probing, *overrides, steps=2):
        config = make_config(*QUICK, *overrides)
        torch.manual_seed(0)
        module = TrainingModule(make_tuned(*QUICK, *overrides), config, steps)
        data = data_module(config, copy.deepcopy(processor))
        data.prepare()
        data.total_steps = steps
        trainer = registry.build("trainer", config.trainer, steps, "fp32", [Probe(data)] if probing else [])
        watch(trainer, module)
        trainer.fit(module, data)
        return module, data

    return run


def too_large(monkeypatch, rows, training=True):
    real = probes.token_losses

    def fail(model, batch, *args):
        if len(batch.input_ids) > rows and torch.is_grad_enabled() is training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(model, batch, *args)

    monkeypatch.setattr(probes, "token_losses", fail)


def test_a_probed_run_is_the_same_run(train, caplog):
    caplog.set_level("INFO")
    plain, probed = (train(probing, "tuner.dropout=0.3")[0] for probing in (False, True))
    assert torch.equal(plain.meter.end_step(), probed.meter.end_step())
    for (name, ours), theirs in zip(probed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert probed.meter.end_interval(0.0).samples == 8
    assert "trainer.probe: training batch, 92 tokens, 16 of them visual and 8 supervised: fits" in caplog.text
    assert "trainer.probe: validation batch, 46 tokens" in caplog.text


def test_what_does_not_fit_is_cut_before_the_first_step(train, monkeypatch, caplog):
    too_large(monkeypatch, 2)
    module, _ = train(True)
    assert module.relief.parts == 2 and module.meter.end_interval(0.0).oom_replays == 0
    assert "do not fit (CUDA out of memory. Tried to allocate 1 GiB): micro-batches of 92 tokens" in caplog.text


def test_without_replay_it_is_refused(train, monkeypatch):
    too_large(monkeypatch, 2)
    with pytest.raises(
        UserError, match=r"trainer\.batch_size=4: 92 tokens, .* do not fit .*; lower it, or take memory"
    ):
        train(True, "trainer.oom_replay=false")


def test_a_validation_batch_that_does_not_fit_is_refused(train, monkeypatch):
    too_large(monkeypatch, 1, training=False)
    with pytest.raises(UserError, match=r"trainer\.val_batch_size=64: 46 tokens, .* do not fit .*; lower it"):
        train(True)


@pytest.mark.parametrize("layout", [[], ["data.packing=true", "data.packing_length=256"], ["data.padding_free=true"]])
def test_no_planned_batch_is_larger(make_config, processor, layout):
    config = make_config(*QUICK, *layout)
    data = data_module(config, copy.deepcopy(processor))
    data.prepare()
    data.total_steps = 5
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 1})()
    tried = data.largest_planned(0, 1)
    for batch in data.train_dataloader():
        assert batch.input_ids.numel() <= max(item.input_ids.numel() for item in tried)
        assert batch.num_visual <= max(item.num_visual for item in tried)


def test_updates_within_the_backward_pass_are_not_tried(train):
    choice = ["tuner=full", "optim=galore", "optim.rank=8", "optim.max_grad_norm=null", "optim.per_parameter=true"]
    with pytest.raises(UserError, match=r"trainer\.probe=true: optim\.per_parameter changes weights"):
        train(True, *choice)
