import pytest

from harness.errors import UserError
from harness.experiment.result import trainable_table


def cells(make_config, tuned, *overrides):
    """The learning rate of each component, as the table shows it."""
    table = trainable_table(tuned, make_config(*overrides).optim, 1e-4)
    lines = [line.split("  ") for line in table.splitlines()]
    rows = {row[0].strip(): [cell.strip() for cell in row if cell.strip()] for row in lines}
    return {name: rows[name][4] for name in ("llm", "aligner", "vit")}


def test_rates_are_those_of_the_components(make_config, make_tuned):
    tuned = make_tuned("freeze=vit")
    assert cells(make_config, tuned, "freeze=vit", "optim.aligner_lr=1e-5") == {
        "llm": "1.0e-04",
        "aligner": "1.0e-05",
        "vit": "-",
    }


def test_a_rate_of_its_own_for_some_parameters_is_shown(make_config, make_tuned):
    """As LoRA+ has it: B learns 16 times as fast as A."""
    tuned = make_tuned()
    tuned.lr_scales = {name: 16.0 for name, _ in tuned.model.named_parameters() if ".lora_B." in name}
    assert cells(make_config, tuned)["llm"] == "1.0e-04, 1.6e-03"


def test_of_a_rate_for_each_layer_the_range_is_shown(make_config, make_tuned):
    tuned = make_tuned("tuner=full", "freeze=none")
    got = cells(make_config, tuned, "tuner=full", "freeze=none", "optim.layer_decay=0.5", "optim.vit_lr=1e-5")
    assert got["llm"] == "3.1e-06 to 1.0e-04" and got["aligner"] == "1.0e-04"
    assert got["vit"].endswith("5.0e-06")


def test_a_rate_for_what_does_not_train_is_refused(make_config, make_tuned):
    config = make_config("freeze=vit_aligner", "freeze.trainable=[model.visual.merger]", "optim.vit_lr=1e-5")
    with pytest.raises(UserError, match=r"optim\.vit_lr=1e-05: the vit trains nothing"):
        trainable_table(make_tuned(), config.optim, 1e-4)
