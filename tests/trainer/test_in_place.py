import lightning
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from harness.trainer.in_place import stay


class WithState(BoringModel):
    def __init__(self, moved):
        super().__init__()
        self.moved = moved

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

    def on_train_end(self):
        self.moved.clear()


@pytest.mark.parametrize("leaves", [True, False])
def test_training_ends_without_a_move(leaves, monkeypatch):
    moved = []
    monkeypatch.setattr(
        "lightning.pytorch.strategies.strategy._optimizers_to_device",
        lambda optimizers, device: moved.extend(optimizers),
    )
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda self: moved.append(self))
    module = WithState(moved)
    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    if leaves:
        stay(trainer.strategy)
    trainer.fit(module)
    # What Lightning does by itself, so that the test would show if it stopped.
    assert len(moved) == (0 if leaves else 2)
    assert len(trainer.optimizers) == 1 and trainer.optimizers[0].state
    assert "cpu" not in vars(module)


def test_an_end_that_fails_leaves_module_and_optimizers_as_they_were():
    class Strategy:
        lightning_module, optimizers = torch.nn.Linear(2, 2), ["one"]

        def teardown(self):
            raise RuntimeError("no end")

    strategy = Strategy()
    stay(strategy)
    with pytest.raises(RuntimeError, match="no end"):
        strategy.teardown()
    assert strategy.optimizers == ["one"] and "cpu" not in vars(strategy.lightning_module)
