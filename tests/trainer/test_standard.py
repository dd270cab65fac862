import pytest

from harness.errors import UserError
from harness.trainer.standard import Accelerator, StandardConfig, pick_accelerator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"trainer\.batch_size=0: must be 1 or more"),
        ({"max_steps": 0}, r"trainer\.max_steps=0: must be 1 or more, or null"),
        ({"max_epochs": 0.0}, r"trainer\.max_epochs=0\.0: must be more than 0"),
        ({"neftune_alpha": 0.0}, r"trainer\.neftune_alpha=0\.0: must be more than 0, or null"),
        ({"checkpoints": False, "load_best": True}, r"trainer\.load_best=True: needs trainer\.checkpoints=true"),
        (
            {"checkpoints": False, "save_every_steps": 5},
            r"trainer\.save_every_steps=5: needs trainer\.checkpoints=true",
        ),
        ({"checkpoints": False, "async_save": True}, r"trainer\.async_save=True: needs trainer\.checkpoints=true"),
        ({"force_resume": True}, r"trainer\.force_resume=true: has no effect without trainer\.resume"),
        ({"monitor": "loss"}, r"trainer\.monitor=loss: known: val/loss, val/exact_match"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        StandardConfig(**options)


def test_what_this_machine_lacks_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no GPU here"):
        pick_accelerator(StandardConfig(accelerator=Accelerator.gpu))
