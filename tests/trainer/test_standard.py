import pytest

from harness import registry
from harness.errors import UserError
from harness.trainer.standard import StandardConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"trainer\.batch_size=0: must be 1 or more"),
        ({"max_steps": 0}, r"trainer\.max_steps=0: must be 1 or more, or null"),
        ({"max_epochs": 0.0}, r"trainer\.max_epochs=0\.0: must be more than 0"),
        ({"monitor": "loss"}, r"trainer\.monitor=loss: must be a validation metric"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        StandardConfig(**options)


@pytest.mark.parametrize(
    ("overrides", "precision", "message"),
    [
        (["trainer.accelerator=gpu"], "fp32", "torch sees no GPU here"),
        (["trainer.accelerator=cpu"], "fp16", r"memory\.precision=fp16: needs a GPU"),
    ],
)
def test_what_this_machine_lacks_is_said(make_config, monkeypatch, overrides, precision, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        registry.build("trainer", make_config(*overrides).trainer, 1, precision, [])
