"""What is put together of a split model at the end of a run."""

import pytest
import torch

from harness import registry
from harness.memory.strategy.parallel import replace_weights
from harness.trainer.module import TrainingModule
from tests.memory.strategy.conftest import exported

registry.load()
GATE = "model.language_model.layers.0.mlp.gate_proj"


@pytest.fixture
def make_module(make_tuned, make_config):
    """Makes a module with trained weights other than they start."""

    def make(*overrides):
        module = TrainingModule(make_tuned(*overrides), make_config(*overrides), total_steps=1).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        return module

    return make


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"tuner={name}"] for name in registry.names("tuner") if name != "peft"),
        ["tuner=peft", "tuner.method=hra", "freeze=vit", "tuner.options={bias: all}"],
        ["tuner=lora", "freeze=vit", "tuner.bias=all"],
        ["tuner=lora", "freeze=vit", "tuner.init=pissa", "tuner.bias=all", "tuner.rslora=true"],
        ["tuner=lora", "tuner.init=loftq"],
        ["tuner=lora", "freeze=regex", "freeze.regex=norm", "freeze.frozen=[aligner]", "freeze.full=[vit]"],
        ["tuner=lora", "tuner.modules_to_save=[layers.0.mlp]", "freeze=prefix", f"freeze.prefixes=[{GATE}]"],
    ],
    ids=" ".join,
)
def test_an_export_finds_what_it_reads(make_module, tmp_path, overrides):
    module = make_module(*overrides)
    before, size = exported(module.tuned.export(tmp_path / "before")), sum(p.numel() for p in module.parameters())
    replace_weights(module, lambda parameter: parameter, keep=True)
    after = exported(module.tuned.export(tmp_path / "after"))
    assert (
        before
        and after.keys() == before.keys()
        and all(torch.equal(after[key], value) for key, value in before.items())
    )
    assert sum(p.numel() for p in module.parameters()) == size
    whole = (tmp_path / "after" / "model").is_dir()
    assert any(parameter.is_meta for parameter in module.parameters()) is not whole


def test_ranks_that_keep_nothing_take_part_and_stay_as_they_are(make_module):
    module = make_module("tuner=lora")
    asked, before = [], dict(module.named_parameters())
    replace_weights(module, lambda parameter: asked.append(parameter) or parameter, keep=False)
    assert dict(module.named_parameters()) == before
    adapters = sum("lora_" in name for name in before)
    # And what is in no layer: embedding, norm, mergers, and the ViT's beginning.
    assert adapters < len(asked) < len(before) / 2 + adapters
