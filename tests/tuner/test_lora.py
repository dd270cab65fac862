import pytest
import torch

from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.optim.group import learning_rates, parameter_groups
from harness.tuner.lora import LoraConfig
from harness.tuner.lora_like import Bias
from harness.tuner.start.config import CordaConfig, EvaConfig, LoftqConfig, LoraGaConfig, Scale


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


def test_patterns_set_rank_and_alpha_by_layer_and_the_first_counts(make_tuned):
    patterns = ["tuner.rank_pattern={layers.1.self_attn.q_proj: 2, q_proj: 4}", "tuner.alpha_pattern={up_proj: 8}"]
    model = make_tuned(*patterns).model
    assert [layer.r["default"] for layer in layers(model, "q_proj")] == [4, 2, 4, 4]
    assert {layer.r["default"] for layer in layers(model, "k_proj")} == {8}
    assert {layer.scaling["default"] for layer in layers(model, "up_proj")} == {8 / 8}
    assert {layer.scaling["default"] for layer in layers(model, "layers.2.self_attn.q_proj")} == {32 / 4}


def test_false_leaves_both_factors_random(make_tuned, make_batch):
    """As PEFT's False: the model does not start unchanged. Hydra reads `false` as a truth value."""
    tuned, batch = make_tuned("tuner.init=false"), make_batch(0, 1)
    assert all(layer.lora_B["default"].weight.abs().min() > 0 for layer in layers(tuned.model, "proj"))
    tuned.model.eval()
    with torch.no_grad():
        changed = supervised_logits(tuned.base, batch)
        with tuned.model.disable_adapter():
            assert not torch.allclose(supervised_logits(tuned.base, batch), changed, atol=1e-2)


def test_lora_plus_trains_b_faster_beside_the_rates_of_the_components(make_config, make_tuned):
    """Learning rate of B = ratio x A's (arXiv 2402.12354, section 5), in each component of its own rate."""
    optim = make_config("freeze=none", "optim.vit_lr=1e-5", "optim.aligner_lr=2e-5", "optim.lr=1e-4").optim
    tuned = make_tuned("freeze=none", "tuner.lora_plus_ratio=16")
    groups = parameter_groups(tuned.model, optim, 1e-4, tuned.lr_scales)
    rates = learning_rates(groups)
    expected = {"llm": 1e-4, "aligner": 2e-5, "vit": 1e-5}
    assert rates == pytest.approx(expected | {f"{name}_x16": 16 * rate for name, rate in expected.items()})
    for group in groups:
        leaf = "lora_B" if group["name"].endswith("_x16") else "lora_A"
        assert all(f".{leaf}." in name for name, _ in group["params"])
    assert make_tuned().lr_scales == {}


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "eva", "corda", "lora_ga", "loftq"])
def test_a_resumed_run_starts_at_the_same_bits(make_tuned, outlook, init):
    """Base and factors come back from the start's file; neither data nor an SVD is asked again."""
    options = [
        f"tuner.init={init}",
        *{"eva": ["tuner.eva.batches=2"], "corda": ["tuner.corda.batches=2"]}.get(init, []),
    ]
    before = make_tuned(*options).model.state_dict()
    torch.manual_seed(0)
    outlook = type(outlook)(20, lambda *_: pytest.fail("looks at data again"), outlook.device, outlook.start_file)
    after = make_tuned(*options, outlook=outlook).model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("beside", [[], ["tuner.modules_to_save=[lm_head]"]], ids=" ".join)
def test_loftq_exports_the_whole_model(make_tuned, make_batch, tmp_path, beside):
    """No adapter of low rank leads from the checkpoint to a quantised base, so what is saved is no adapter."""
    from transformers import Qwen3VLForConditionalGeneration

    tuned, batch = make_tuned("tuner.init=loftq", "freeze=none", *beside), make_batch(0, 1)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    tuned.model.eval()
    before = {name: value.clone() for name, value in tuned.model.state_dict().items()}
    folder = tuned.export(tmp_path)
    assert folder == tmp_path / "model" and not (tmp_path / "adapter").exists()
    assert all(torch.equal(value, before[name]) for name, value in tuned.model.state_dict().items())
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        expected, found = supervised_logits(tuned.base, batch), supervised_logits(loaded.eval(), batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"tuner\.rank=0: must be 1 or more"),
        ({"alpha": 0.0}, r"tuner\.alpha=0\.0: must be more than 0"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
        ({"target_modules": []}, r"tuner\.target_modules=\[\]: name at least one"),
        ({"init": "loftier"}, r"tuner\.init=loftier: known: default"),
        ({"init": "pissa_niter_0"}, r"tuner\.init=pissa_niter_0: known: default"),
        ({"init": "orthogonal", "rank": 3}, r"tuner\.rank=3: must be even with tuner\.init=orthogonal"),
        ({"init": "orthogonal", "rank_pattern": {"q": 5}}, r"tuner\.rank=5: must be even"),
        ({"lora_ga": LoraGaConfig(iters=3)}, r"tuner\.lora_ga=.*iters=3.*: has no effect with tuner\.init=default"),
        ({"init": "pissa", "eva": EvaConfig(rho=1)}, r"tuner\.eva=.*: has no effect with tuner\.init=pissa"),
        ({"corda": CordaConfig(batches=1)}, r"tuner\.corda=.*: has no effect"),
        ({"loftq": LoftqConfig(bits=8)}, r"tuner\.loftq=.*: has no effect"),
        ({"rank_pattern": {"q_proj": 0}}, r"tuner\.rank_pattern\.q_proj=0: must be more than 0"),
        ({"alpha_pattern": {"q(": 1}}, r"tuner\.alpha_pattern=q\(: is no regular expression"),
        ({"lora_plus_ratio": 0}, r"tuner\.lora_plus_ratio=0: must be more than 0"),
        ({"layers_to_transform": []}, r"tuner\.layers_to_transform=\[\]: name at least one decoder layer"),
        ({"target_regex": ".*q_proj", "target_modules": ["q_proj"]}, r"tuner\.target_regex=.*stands instead"),
        ({"target_regex": "("}, r"tuner\.target_regex=\(: is no regular expression"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EvaConfig, {"rho": 0.5}, r"tuner\.eva\.rho=0\.5: must be 1 or more"),
        (CordaConfig, {"batches": 0}, r"tuner\.corda\.batches=0: must be 1 or more"),
        (LoftqConfig, {"bits": 3}, r"tuner\.loftq\.bits=3: known: 4, 8"),
        (LoftqConfig, {"iterations": 0}, r"tuner\.loftq\.iterations=0"),
        (LoraGaConfig, {"max_length": 0}, r"tuner\.lora_ga\.max_length=0"),
        (LoraGaConfig, {"gamma": 0.0}, r"tuner\.lora_ga\.gamma=0\.0: must be more than 0"),
        (LoraGaConfig, {"gamma": 8, "scale": Scale.gd}, r"tuner\.lora_ga\.gamma=8: has no effect with scale=gd"),
    ],
)
def test_settings_of_a_start_out_of_range_are_refused(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner.rank=65"], r"tuner\.rank=65: is larger than the layer model\.language_model\..*k_proj: at most 64"),
        (
            ["tuner.rank_pattern={o_proj: 97}"],
            r"tuner\.rank_pattern\.o_proj=97: is larger than the layer .*: at most 96",
        ),
        (["tuner.rank_pattern={qkv: 4}"], r"tuner\.rank_pattern\.qkv=4: matches no layer that gets an adapter"),
        (["tuner.rank_pattern={q_proj: 4, layers.0.self_attn.q_proj: 2}"], r"q_proj=2: matches no layer.*an earlier"),
        (["tuner.alpha_pattern={visual.*: 4}"], r"tuner\.alpha_pattern\.visual\.\*=4\.0: matches no layer"),
        (["tuner.target_modules=[query]"], r"tuner\.target_modules=query: matches no linear layer; known: .*q_proj"),
        (["tuner.target_regex=q_proj"], r"tuner\.target_regex=q_proj: matches no linear layer"),
        (["tuner.layers_to_transform=[4]"], r"tuner\.layers_to_transform=4: this model's decoder layers are 0 to 3"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(make_tuned, overrides, message):
    with pytest.raises(UserError, match=message):
        make_tuned(*overrides)


def test_biases_that_do_not_exist_can_not_train(make_tuned):
    """The LLM of a Qwen3-VL has no biases, and the default policy freezes the rest."""
    with pytest.raises(UserError, match=r"tuner\.bias=all: what the freeze policy leaves free has no biases; use none"):
        make_tuned("tuner.bias=all")


def test_biases_of_frozen_components_stay_frozen(make_tuned):
    model = make_tuned(f"tuner.bias={Bias.all.name}", "freeze=aligner").model
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
