"""A step that runs out of memory is taken anew: the same losses, weights and counts as if nothing had happened."""

import copy
import gc
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import lightning
import pytest
import torch

from harness import config as configs
from harness import registry
from harness.compose import compose_config
from harness.data.assemble import data_module
from harness.errors import UserError
from harness.experiment import trial
from harness.experiment.folder import RunFolder
from harness.trainer import module as modules
from harness.trainer.meter import Meter
from harness.trainer.module import TrainingModule
from harness.trainer.relief import Relief
from harness.trainer.replay import watch

QUICK = (
    "data.train_rows=34",
    "data.held_out=2",
    "data.generation.enabled=false",
    "data.workers=0",
    "trainer.batch_size=4",
    "trainer.accumulate=2",
    "optim.lr=1e-2",
)
EXACT = "tuner.dropout=0"
PACKED = ("data.packing=true", "data.packing_length=96", "trainer.batch_size=1")
STEPS = 3
RANK = """
import json, os, sys
import pytest
sys.path.insert(0, sys.argv[1])
import in_rank
import test_replay as here

here.modules.token_losses = injected = here.Fails({3} if os.environ["LOCAL_RANK"] == "1" else (), backward=True)
choice = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.oom_replay=true", here.EXACT)
run = in_rank.build(here.Run, *choice)
print(json.dumps([run.curve, run.totals.oom_replays, injected.rows]))
"""


class Steps(lightning.Callback):
    """Keeps what a recorder would be told."""

    def __init__(self):
        self.curve, self._last = [], 0

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            self.curve.append((module.meter.end_step().item(), module.grad_norm.item()))


class Run:
    """Trains the tiny model without files around it."""

    def __init__(self, make_config, make_tuned, processor, *overrides, precision="fp32"):
        config = make_config(*QUICK, *overrides)
        torch.manual_seed(0)
        self.module = TrainingModule(make_tuned(*QUICK, *overrides), config, STEPS)
        data = data_module(config, copy.deepcopy(processor))
        data.prepare()
        data.total_steps = STEPS
        steps = Steps()
        trainer = registry.build("trainer", config.trainer, STEPS, precision, [steps])
        watch(trainer, self.module)
        trainer.fit(self.module, data)
        self.curve = steps.curve
        self.totals = self.module.meter.end_interval(0.0)
        self.weights = {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}
        self.progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total


@pytest.fixture
def run(make_config, make_tuned, processor):
    return lambda *overrides, **told: Run(make_config, make_tuned, processor, *overrides, **told)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def undisturbed(run, kept):
    def get(*overrides):
        if overrides not in kept:
            kept[overrides] = run(*overrides)
        return kept[overrides]

    return get


class Fails:
    """Raises out of memory at some calls of the loss, forward or in the backward pass of what it returns."""

    def __init__(self, calls, backward=False):
        self.calls, self.backward, self.count, self.rows = calls, backward, 0, []
        self.real = modules.token_losses

    def __call__(self, model, batch, *args):
        self.count += 1
        self.rows.append(len(batch.input_ids))
        if self.count not in self.calls:
            return self.real(model, batch, *args)
        if not self.backward:
            self.real(model, batch, *args)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more")
        handles = []

        def fail(gradient):
            handles.pop().remove()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

        trained = [p for p in model.model.language_model.layers[1].parameters() if p.requires_grad]
        handles.append(trained[0].register_hook(fail))
        return self.real(model, batch, *args)


@pytest.fixture
def fails(monkeypatch):
    def inject(calls, backward=False):
        made = Fails(calls, backward)
        monkeypatch.setattr(modules, "token_losses", made)
        return made

    return inject


def assert_same(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got.curve, expected.curve, atol=tolerance, rtol=tolerance)
    for name, value in expected.weights.items():
        torch.testing.assert_close(got.weights[name], value, atol=tolerance, rtol=1e-4, msg=name)
    ours, theirs = asdict(got.totals), asdict(expected.totals)
    for name in ("steps", "samples", "tokens", "supervised", "visual"):
        assert ours[name] == theirs[name], name
    assert ours["needed_flops"] == pytest.approx(theirs["needed_flops"])
    assert got.progress.ready == got.progress.completed == expected.progress.completed == STEPS


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("calls", "replays"), [({3}, 1), ({4}, 1), ({3, 5}, 2)])
def test_a_replayed_run_is_the_undisturbed_one(run, undisturbed, fails, caplog, calls, replays, backward):
    expected = undisturbed(EXACT)
    injected = fails(calls, backward)
    got = run(EXACT)
    assert_same(got, expected)
    assert (got.totals.oom_replays, expected.totals.oom_replays) == (replays, 0)
    assert "step 2: out of memory (CUDA out of memory. Tried to allocate 1 GiB); rolled back" in caplog.text
    assert "tokens or more are cut into 2" in caplog.text
    assert set(injected.rows[-4:]) == {4 // 2**replays}, "the measure stays"


def test_a_measure_stays_with_batches_that_large_alone(make_batch, make_tuned):
    relief, base = Relief(), make_tuned().base
    large, small = make_batch(0, 1, 2, 3), make_batch(4)
    assert "tokens or more are cut into 2" in relief.increase(large, base)
    assert (relief.parts_of(large), relief.parts_of(small)) == (2, 1)
    assert "cut into 4" in relief.increase(large, base)
    assert "checkpointed" in relief.increase(large, base)
    assert relief.increase(large, base) is None
    assert Relief().increase(small, base) is None, "all layers are checkpointed already"


def test_a_single_row_gets_checkpointing_with_the_same_masks(run, undisturbed, fails, caplog):
    """Nothing is cut, so that dropout draws the same numbers."""
    choice = (*PACKED, "tuner.dropout=0.3")
    expected = undisturbed(*choice)
    fails({4}, backward=True)
    assert_same(run(*choice), expected)
    assert "all layers are checkpointed" in caplog.text


def test_dropout_of_cut_batches_is_reproducible(run, undisturbed, fails):
    curves = []
    for _ in range(2):
        fails({3})
        curves.append(run("tuner.dropout=0.3").curve)
    expected = undisturbed("tuner.dropout=0.3").curve
    assert curves[0] == curves[1]
    assert curves[0][0] == expected[0] and curves[0][1] != expected[1]


def test_regularizers_are_added_once(run, undisturbed, fails):
    choice = ("tuner=adalora", "tuner.dropout=0")
    expected = undisturbed(*choice)
    fails({3})
    assert_same(run(*choice), expected)


def test_selective_layers_become_checkpointed_whole(make_tuned, make_config, make_batch):
    from harness.model.forward import supervised_loss

    base = make_tuned(EXACT).base.train()
    batch, trained = make_batch(0, 1), [p for p in base.parameters() if p.requires_grad]
    expected = torch.autograd.grad(supervised_loss(base, batch), trained)
    registry.build("memory", make_config("memory.checkpointing=selective").memory, base)
    relief = Relief()
    assert relief.apply(base) and not relief.apply(base)
    assert all("uncheckpointed" not in vars(layer) for layer in base.model.language_model.layers)
    for ours, theirs in zip(torch.autograd.grad(supervised_loss(base, batch), trained), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def state_fails(monkeypatch, times):
    real, count = torch.optim.AdamW._init_group, [0]

    def fail(self, group, *args):
        made, count[0] = real(self, group, *args), count[0] + 1
        if count[0] <= times:
            raise torch.OutOfMemoryError("no room for state")
        return made

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", fail)


def test_an_update_that_finds_no_memory_is_taken_once_more(run, undisturbed, monkeypatch, caplog):
    expected = undisturbed(EXACT)
    state_fails(monkeypatch, 1)
    assert_same(run(EXACT), expected, 1e-6)
    assert "step 1: out of memory (no room for state); " in caplog.text and "what was cached is freed" in caplog.text


def test_an_update_that_finds_none_again_ends_the_run(run, monkeypatch):
    state_fails(monkeypatch, 2)
    with pytest.raises(torch.OutOfMemoryError, match="no room for state"):
        run(EXACT)


def test_a_weight_that_has_moved_ends_the_run(run, monkeypatch):
    real = torch.optim.AdamW.step

    def fail(self, closure=None):
        real(self, closure)
        raise torch.OutOfMemoryError("too late")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(torch.OutOfMemoryError, match="too late"):
        run(EXACT)


def test_without_replay_the_run_ends(run, fails):
    fails({3})
    with pytest.raises(torch.OutOfMemoryError):
        run("trainer.oom_replay=false")


def test_what_never_fits_ends_with_what_to_change(tmp_path, fails):
    fails(range(1, 1000))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    folder = RunFolder(tmp_path)
    choice = [*QUICK, "trainer.max_steps=2", "trainer.val_at_start=false"]
    configs.save(compose_config(choice), folder.config)
    try:
        assert trial.main([str(tmp_path)]) == 1
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)
    summary = json.loads(folder.summary.read_text())
    assert summary["status"] == "out_of_memory" and "lower data.max_length" in summary["error"]
    assert "all layers are checkpointed (memory.checkpointing=full)" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_ranks_agree_on_a_replay(undisturbed, tmp_path):
    """One of two gloo processes runs out of memory in a backward pass; both take the step anew, as one process does."""
    expected = undisturbed(EXACT, "trainer.accumulate=4")
    (tmp_path / "rank.py").write_text(RANK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, tmp_path / "rank.py", Path(__file__).parent]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    (first, *counts), (second, *_) = (json.loads(text.splitlines()[-1]) for text in told)
    together = [(a[0] + b[0], a[1]) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(together, expected.curve, atol=1e-5, rtol=1e-5)
    assert counts[0] == 1 and set(counts[1]) == {4}, "the first rank has no need of smaller micro-batches"
    assert json.loads(told[1].splitlines()[-1])[2][-4:] == [2] * 4


def test_updates_within_the_backward_pass_are_refused(run):
    choice = ["tuner=full", "optim=galore", "optim.rank=8", "optim.max_grad_norm=null", "optim.per_parameter=true"]
    with pytest.raises(UserError, match=r"trainer\.oom_replay=true: optim\.per_parameter changes weights"):
        run(*choice, "trainer.accumulate=1", "trainer.oom_replay=true")


def test_a_rewound_step_is_counted_once(make_batch):
    meter, batch = Meter(), make_batch(0)
    for _ in range(2):
        meter.begin_step()
        for _ in range(2):
            meter.add(batch, torch.tensor(5.0))
            meter.rewind()
        meter.add(batch, torch.tensor(1.0))
        assert meter.end_step().item() == 1.0
    interval = meter.end_interval(0.0)
    assert (interval.steps, interval.samples, interval.oom_replays) == (2, 2, 4)


def test_measures_are_part_of_a_checkpoint(run, fails, make_tuned, make_config):
    fails({3})
    module, checkpoint = run(EXACT).module, {}
    module.relief.apply(module.tuned.base)
    module.on_save_checkpoint(checkpoint)
    resumed = TrainingModule(make_tuned(EXACT), make_config(EXACT), STEPS)
    resumed._trainer = module._trainer
    resumed.on_load_checkpoint(checkpoint | {"state_dict": resumed.state_dict()})
    assert asdict(resumed.relief) == asdict(module.relief) and resumed.relief.parts == 2
    assert all(hasattr(layer, "recompute") for layer in resumed.tuned.base.model.language_model.layers)


@pytest.mark.gpu
def test_a_memory_fraction_leads_to_the_undisturbed_curve(run):
    """Eight packs of 4,096 tokens take some GiB; seven tenths of it are enough for half of them."""
    choice = (
        *("data=digits", "data.train_rows=1400", "data.packing=true", "data.packing_length=4096", EXACT),
        *("trainer.batch_size=8", "trainer.accumulate=1", "trainer.accelerator=gpu", "model.dtype=bfloat16"),
        *("trainer.compile=false", "optim.lr=1e-3"),
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    expected = run(*choice, precision="bf16")
    peak, total = torch.cuda.max_memory_reserved() - before, torch.cuda.get_device_properties(0).total_memory
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.7 * peak) / total)
    try:
        got = run(*choice, precision="bf16")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert got.totals.oom_replays > 0 and got.module.relief.parts > 1
    torch.testing.assert_close(got.curve, expected.curve, atol=1e-3, rtol=2e-2)
    assert got.totals.tokens == expected.totals.tokens
