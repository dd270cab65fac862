import pytest
import torch

from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.lora import Bias, LoraConfig


def layers(model, suffix):
    return [module for name, module in model.named_modules() if name.endswith(suffix) and hasattr(module, "lora_A")]


def test_trainable_count_is_that_of_the_paper(make_tuned):
    """Rank x (inputs + outputs) for each adapted matrix (arXiv 2106.09685, section 4.2)."""
    tuned = make_tuned("tuner.rank=4")
    linears = [m for n, m in make_tuned("tuner=full").base.model.language_model.named_modules() if hasattr(m, "bias")]
    expected = sum(4 * (m.in_features + m.out_features) for m in linears if isinstance(m, torch.nn.Linear))
    assert sum(p.numel() for p in tuned.model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize(("rslora", "scale"), [("false", 32 / 16), ("true", 32 / 4)])
def test_scale_is_alpha_over_rank_or_its_root(make_tuned, rslora, scale):
    model = make_tuned("tuner.rank=16", f"tuner.rslora={rslora}").model
    assert {layer.scaling["default"] for layer in layers(model, "proj")} == {scale}


def test_pissa_holds_the_principal_singular_values(make_tuned):
    """A and B carry the largest singular values of W, the frozen rest the others (arXiv 2404.02948, equation 2)."""
    weight = make_tuned("tuner=full").base.model.language_model.layers[0].self_attn.q_proj.weight
    layer = layers(make_tuned("tuner.init=pissa", "tuner.rank=4").model, "layers.0.self_attn.q_proj")[0]
    product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], values[:4], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight)[0], values[4], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"tuner\.rank=0: must be 1 or more"),
        ({"alpha": 0.0}, r"tuner\.alpha=0\.0: must be more than 0"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
        ({"target_modules": []}, r"tuner\.target_modules=\[\]: name at least one"),
        ({"init": "loftier"}, r"tuner\.init=loftier: known: default"),
        ({"init": "pissa", "bias": Bias.all}, r"tuner\.bias=all: can not be exported with tuner\.init=pissa"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**options)


def test_biases_that_do_not_exist_can_not_train(make_tuned):
    """The LLM of a Qwen3-VL has no biases, and the default policy freezes the rest."""
    with pytest.raises(UserError, match=r"tuner\.bias=all: what the freeze policy leaves free has no biases; use none"):
        make_tuned("tuner.bias=all")


def test_biases_of_frozen_components_stay_frozen(make_tuned):
    model = make_tuned("tuner.bias=all", "freeze=aligner").model
    biases = {name: p for name, p in model.named_parameters() if "lora_" not in name and name.endswith("bias")}
    trained = {name for name, p in biases.items() if p.requires_grad}
    assert trained == {name for name in biases if component_of(name) is Component.vit}
    assert any(component_of(name) is Component.aligner for name in biases)
    others = [n for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n and n not in biases]
    assert others == []


def test_float32_adapters_train_over_a_bfloat16_base(make_tuned, make_batch):
    tuned, batch = make_tuned("model.dtype=bfloat16", "freeze=none"), make_batch(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
    loss.backward()
    expected = make_tuned("freeze=none").base
    with torch.no_grad():
        exact = loss_sum(supervised_logits(expected, batch), batch) / batch.num_supervised
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    for name, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
            assert torch.isfinite(parameter.grad).all() and (parameter.grad.any() or ".lora_A." in name), name
