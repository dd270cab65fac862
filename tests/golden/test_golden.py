"""The losses of 20 steps of every tuner: a refactor gives the same, a change of the mathematics records them anew.

    python -m pytest tests/golden --record              all of them
    python -m pytest tests/golden --record -k dora      one

On one kind of CPU they are equal bit for bit, on 1 thread as on 2. Without vector instructions
(ATEN_CPU_CAPABILITY=default MKL_CBWR=SSE2 ONEDNN_MAX_CPU_ISA=SSE41) they were off by up to 8e-7, for which TOLERANCE
leaves room; an eps of 1e-7 in place of 1e-8 puts them off by 2e-5, a weight decay of 0.11 in place of 0.1 by 5e-5.
"""

import json
from pathlib import Path

import lightning
import pytest
import torch

from harness import registry
from harness.data.assemble import data_module
from harness.trainer.module import TrainingModule
from harness.tuner.outlook import Outlook

registry.load()
FILE = Path(__file__).parent / "losses.json"
STEPS = 20
TOLERANCE = 1e-5
"""Absolute: what rounding does to a loss does not shrink with the loss."""
SETTINGS = [
    f"trainer.max_steps={STEPS}",
    "trainer.batch_size=4",
    "trainer.accelerator=cpu",
    "data.train_rows=80",
    "data.workers=0",
    "data.cache_dir=null",
    "data.generation.enabled=false",
    "memory.precision=fp32",
    "model.attention=sdpa",
    "optim.lr=1e-3",
]
FASTER = {"adalora": ["optim.lr=3e-2"], "vera": ["optim.lr=3e-2"]}
"""At the common rate these hardly leave the base model in 20 steps, and a mistake in them would not show."""


class Losses(lightning.Callback):
    """Takes the loss of each optimiser step off the meter."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(pl_module.meter.end_step().item())


def train(config, processor, folder: Path) -> list[float]:
    """Trains as a run does, without validation, checkpoints and export."""
    lightning.seed_everything(config.seed, verbose=False)
    data = data_module(config, processor)
    data.total_steps = config.trainer.max_steps
    data.prepare()
    loaded = registry.build("model", config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    outlook = Outlook(data.total_steps, data.calibration_batches, torch.device("cpu"), folder / "start.safetensors")
    tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
    losses = Losses()
    trainer = registry.build("trainer", config.trainer, data.total_steps, "fp32", [losses])
    trainer.fit(TrainingModule(tuned, config, data.total_steps), data)
    return losses.seen


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they save at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", registry.names("tuner"))
def test_losses_are_those_recorded(name, make_config, processor, tmp_path, pytestconfig):
    losses = train(make_config(f"tuner={name}", *SETTINGS, *FASTER.get(name, [])), processor, tmp_path)
    golden = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if pytestconfig.getoption("--record"):
        FILE.write_text(json.dumps(dict(sorted((golden | {name: losses}).items())), indent=1) + "\n")
        return
    again = f"python -m pytest tests/golden --record -k '{name}]'"
    assert name in golden, f"no golden losses of tuner={name}: record them with {again}"
    assert losses == pytest.approx(golden[name], abs=TOLERANCE, rel=0), f"if the change is meant: {again}"


def test_no_losses_of_a_tuner_that_is_gone():
    assert set(json.loads(FILE.read_text())) <= set(registry.names("tuner"))
