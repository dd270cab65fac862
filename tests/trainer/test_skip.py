"""A step that is not finite changes neither weights nor optimiser state, on any rank, and the run goes on behind it."""

import copy
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.data.assemble import data_module
from harness.errors import UserError
from harness.trainer import module as modules
from harness.trainer.module import TrainingModule
from harness.trainer.replay import watch
from harness.trainer.skip import Skipped, leave_out_nonfinite, skips_on_device

SKIP = (
    "trainer.on_nonfinite=skip",
    "data.train_rows=34",
    "data.held_out=2",
    "data.generation.enabled=false",
    "data.workers=0",
    "trainer.batch_size=4",
    "trainer.accumulate=2",
    "optim.lr=1e-2",
)
STEPS, BAD = 4, 3
RANK = """
import json, os, sys
import pytest
sys.path.insert(0, sys.argv[1])
import in_rank
import test_skip as here

if os.environ["LOCAL_RANK"] == "1":
    here.modules.token_losses = here.Poisoned({2 * here.BAD})
choice = ("trainer.devices=2", "trainer.accelerator=cpu", *sys.argv[2:])
run = in_rank.build(here.Run, *choice)
print(json.dumps([run.moved, run.finite, float(sum(value.double().sum() for value in run.states[-1]))]))
"""


class Poisoned:
    """Makes the loss of some calls, or their gradients alone, no number."""

    def __init__(self, calls, gradient_only=False):
        self.calls, self.gradient_only, self.count, self.real = calls, gradient_only, 0, modules.token_losses

    def __call__(self, *args):
        self.count += 1
        summed, each = self.real(*args)
        if self.count not in self.calls:
            return summed, each
        if self.gradient_only:
            summed.register_hook(lambda gradient: gradient * math.nan)
            return summed, each
        return summed * math.nan, each


class Watch(lightning.Callback):
    """Keeps weights and optimiser state behind each step."""

    def __init__(self):
        self.states, self.rates, self.finite, self._last = [], [], [], 0

    def on_train_start(self, trainer, module):
        self.states.append(state(trainer, module))

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step != self._last:
            self._last = trainer.global_step
            self.states.append(state(trainer, module))
            self.rates.append(module.learning_rates["llm"])
            self.finite.append(math.isfinite(module.meter.end_step().item() + module.grad_norm.item()))


def state(trainer, module):
    weights = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    (optimizer,) = trainer.optimizers
    # What is not there yet is zero.
    told = [value for p in optimizer.state for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    return weights + copy.deepcopy(told)


class Run:
    """Trains the tiny model without files around it."""

    def __init__(self, make_config, make_tuned, processor, *overrides):
        config = make_config(*SKIP, *overrides)
        torch.manual_seed(0)
        module = TrainingModule(make_tuned(*SKIP, *overrides), config, STEPS)
        data = data_module(config, copy.deepcopy(processor))
        data.prepare()
        data.total_steps = STEPS
        seen = Watch()
        trainer = registry.build("trainer", config.trainer, STEPS, "fp32", [seen])
        watch(trainer, module)
        trainer.fit(module, data)
        self.optimizer = trainer.optimizers[0]
        self.states, self.rates, self.finite = seen.states, seen.rates, seen.finite
        self.moved = [
            not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            for before, after in zip(self.states[1:], self.states[2:], strict=False)
        ]
        """Whether anything changed, from step 2 on."""


@pytest.fixture
def run(make_config, make_tuned, processor):
    return lambda *overrides: Run(make_config, make_tuned, processor, *overrides)


@pytest.fixture
def poison(monkeypatch):
    def inject(calls, gradient_only=False):
        monkeypatch.setattr(modules, "token_losses", Poisoned(calls, gradient_only))

    return inject


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, -math.inf)])
def test_the_device_or_the_host_leaves_the_update_out(values):
    loss, norm = map(torch.tensor, values)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), math.nan)
    optimizer = torch.optim.AdamW([weight], fused=True)
    leave_out_nonfinite(optimizer, loss, norm, 1, on_device=True)
    optimizer.step()
    assert weight.tolist() == [1.0] * 3 and optimizer.state[weight]["step"] == 0
    with pytest.raises(Skipped):
        leave_out_nonfinite(optimizer, loss, norm, 1, on_device=False)
    weight.grad = torch.ones(3)
    leave_out_nonfinite(optimizer, torch.tensor(1.0), torch.tensor(1.0), 1, on_device=True)
    optimizer.step()
    assert weight.tolist() != [1.0] * 3 and optimizer.state[weight]["step"] == 1


@pytest.mark.gpu
def test_on_the_device_nothing_waits(no_waits):
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    weight.grad = torch.full((3,), math.nan, device="cuda")
    optimizer = torch.optim.AdamW([weight], fused=True)
    loss = torch.tensor(math.nan, device="cuda")
    with no_waits():
        leave_out_nonfinite(optimizer, loss, loss, 1, on_device=True)
        optimizer.step()
    assert weight.tolist() == [1.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "on_device"),
    [
        ("optim=adamw", True),
        ("optim=adamw trainer.oom_replay=false", True),
        ("optim=sgd optim.momentum=0.9", False),
        ("optim=lion", False),
        ("optim=schedule_free", False),
        ("tuner=full optim=muon optim.ns_steps=1", False),
        ("tuner=full optim=lisa optim.step_interval=2", False),
        # Reads the gradients behind the step, and so is kept from that on the host.
        ("tuner=adalora", True),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing(run, poison, choice, on_device):
    poison({2 * BAD - 1}, gradient_only=choice == "optim=adamw")
    found = run(*choice.split())
    assert skips_on_device(found.optimizer) is on_device
    assert found.moved == [True, False, True]
    assert all(torch.isfinite(value).all() for value in found.states[-1])


@pytest.mark.slow
def test_the_schedule_goes_on_and_the_other_steps_are_taken(run, poison):
    expected = run("optim=adamw").rates
    poison({2 * BAD})
    found = run("optim=adamw")
    assert len(set(expected)) == STEPS and found.rates == expected and found.finite == [True, True, False, True]
    assert found.optimizer.state[found.optimizer.param_groups[0]["params"][0]]["step"] == STEPS - 1


@pytest.mark.parametrize("choice", [[], ["optim=lion"], ["trainer.oom_replay=true"]], ids=["device", "host", "replay"])
@pytest.mark.slow
def test_two_ranks_skip_the_same_step(tmp_path, choice):
    """Of which one alone has a loss that is no number; it is gradients that tell the other, and a word of its own."""
    (tmp_path / "rank.py").write_text(RANK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    root = str(Path(modules.__file__).parents[2])
    own = {**os.environ, "PYTHONPATH": root, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "rank.py"), str(Path(__file__).parent), *choice]
    ranks = [
        subprocess.Popen(
            command, env=own | {"RANK": str(n), "LOCAL_RANK": str(n)}, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for n in (0, 1)
    ]
    try:
        told = [json.loads(rank.communicate(timeout=300)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [moved for moved, _, _ in told] == [[True, False, True]] * 2
    assert told[0][2] == told[1][2] and math.isfinite(told[0][2])
    assert told[1][1] == [True, True, False, True]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["trainer.on_nonfinite=ignore"], "trainer.on_nonfinite"),
        (["trainer.max_nonfinite=0"], "trainer.max_nonfinite=0: must be 1 or more"),
        (["trainer.spike_mads=0"], "trainer.spike_mads=0.0: must be more than 0, or null"),
        (
            ["tuner=full", "optim=galore", "optim.per_parameter=true", "optim.max_grad_norm=null"],
            "trainer.on_nonfinite=skip: optim.per_parameter updates before",
        ),
        (["memory/strategy=zero2", "trainer.devices=2"], "trainer.on_nonfinite=skip: memory/strategy=zero2 takes its"),
    ],
)
def test_what_can_not_be_is_refused(choice, message):
    with pytest.raises(UserError, match=message):
        to_run_config(compose_config(["trainer.on_nonfinite=skip", *choice]))
