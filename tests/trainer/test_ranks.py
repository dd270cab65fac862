"""Two real processes of which one has text alone and the other images, where the vision tower trains (DDP, gloo)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import harness
from harness.data.collator import collate
from harness.data.row import Message, Row
from harness.trainer.module import TrainingModule

ROOT = Path(harness.__file__).parent.parent
CASES = {
    "full": ("tuner=full", "freeze=none"),
    "lora": ("tuner=lora", "tuner.dropout=0", "freeze=none"),
    "aligner": ("tuner=full", "freeze=vit"),
}
RANK = """
import os, sys
from datetime import timedelta
import torch
from torch.nn.parallel import DistributedDataParallel
from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.trainer.module import TrainingModule
from harness.tuner.outlook import Outlook

torch.set_num_threads(1)
folder, rank = sys.argv[1], int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                                     timeout=timedelta(seconds=60))


class Trainer:
    world_size, accumulate_grad_batches = 2, 1


class Step(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.training_step(batch, 0)


registry.load()
for case, (overrides, state) in torch.load(f"{folder}/modules.pt", weights_only=True).items():
    config = to_run_config(compose_config(overrides))
    loaded = registry.build("model", config.model)
    outlook = Outlook(1, None, torch.device("cpu"), None)
    policy = registry.build("freeze", config.freeze, loaded.model)
    tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
    module = TrainingModule(tuned, config, total_steps=1)
    module.load_state_dict(state, strict=False)
    batches = torch.load(f"{folder}/batches.pt", weights_only=False)
    module._trainer = Trainer()
    step = DistributedDataParallel(Step(module))
    step(batches[rank]).backward()
    loss = module.meter.end_step()
    torch.distributed.all_reduce(loss)
    grads = {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}
    torch.save((loss, grads), f"{folder}/{case}_{rank}.pt")
torch.distributed.destroy_process_group()
"""


class OneProcess:
    """Stands in for Lightning's trainer."""

    world_size, accumulate_grad_batches = 1, 2


@pytest.fixture
def batches(make_batch, encoder):
    """One of text, one with an image."""
    turns = (Message("user", ("How much is 2 and 2?",)), Message("assistant", ("it is 4",)))
    samples = [encoder.load(sample) for sample in encoder.encode(Row(messages=turns, origin="text"))]
    text = collate(samples, encoder.text, encoder.pad_token_id)
    assert text.pixel_values is None
    both = [text, make_batch(0)]
    for batch in both:
        batch.step_supervised = batch.num_supervised
    return both


@pytest.mark.slow
def test_a_rank_of_text_and_one_of_images_are_one_process(tmp_path, make_tuned, make_config, batches):
    """Neither waits for the other's gradients of the tower; loss and gradients are those of both batches at once."""
    modules = {
        case: TrainingModule(make_tuned(*overrides), make_config(*overrides), total_steps=1)
        for case, overrides in CASES.items()
    }
    torch.save({case: (CASES[case], module.state_dict()) for case, module in modules.items()}, tmp_path / "modules.pt")
    torch.save(batches, tmp_path / "batches.pt")
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, str(tmp_path / "rank.py"), str(tmp_path)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in (0, 1)
    ]
    try:
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    for case, module in modules.items():
        expected_loss, expected = on_one_process(module, batches)
        assert any(name.startswith("model.visual") or ".visual." in name for name in expected), case
        for rank in (0, 1):
            loss, grads = torch.load(tmp_path / f"{case}_{rank}.pt", weights_only=True)
            torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-5)
            assert grads.keys() == expected.keys()
            for name, grad in grads.items():
                torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-4, msg=f"{case} {name}")


def on_one_process(module, batches):
    """The loss of a step of both, and its gradients."""
    module._trainer = OneProcess()
    total = sum(batch.num_supervised for batch in batches)
    for index, batch in enumerate(batches):
        batch.step_supervised = total
        (module.training_step(batch, index) / 2).backward()
    grads = {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}
    return module.meter.end_step(), grads
