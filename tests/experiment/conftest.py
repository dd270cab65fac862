import logging

import pytest
import torch

from harness import config, registry
from harness.compose import compose_config
from harness.experiment import trial
from harness.experiment.folder import RunFolder

QUICK = ("data.workers=0", "trainer.batch_size=8", "data.generation.max_samples=4")
DIGITS = ("data.train_rows=32",)
"""A run of seconds: four steps an epoch. Its validation still takes all 360 rows."""


@pytest.fixture(autouse=True)
def root_logger():
    """A run sends logging to its folder; later tests must not write there."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


@pytest.fixture
def run(tmp_path):
    """Runs a trial in this process and returns its folder and exit code."""
    registry.load()

    def start(name: str, *overrides: str) -> tuple[RunFolder, int]:
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(exist_ok=True)
        digits = () if "data=jsonl" in overrides else DIGITS
        config.save(compose_config([*QUICK, *digits, *overrides]), folder.config)
        return folder, trial.main([str(folder.path)])

    yield start
    if torch.cuda.is_initialized():  # memory.budget_gib holds for a process
        torch.cuda.set_per_process_memory_fraction(1.0)
