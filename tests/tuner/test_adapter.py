import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.activation import Activation
from harness.tuner.adapter import AdapterConfig, Place
from harness.tuner.bottleneck import Bottleneck

TEXT, VISION = 96, 64
"""Widths of the tiny model; both sides have four layers, and there are four mergers."""


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def loss(model, batch):
    return loss_sum(supervised_logits(model, batch), batch) / batch.num_supervised


@pytest.mark.parametrize(
    ("overrides", "modules"),
    [
        ([], {TEXT: 8}),
        (["tuner.places=[mlp]"], {TEXT: 4}),
        (["tuner.places=[attention]"], {TEXT: 4}),
        (["freeze=none"], {TEXT: 8 + 4, VISION: 8}),
        (["freeze=llm", "tuner.places=[attention]"], {VISION: 4}),
        (["freeze=prefix", "freeze.prefixes=[model.language_model.layers.0]"], {TEXT: 6}),
    ],
    ids=str,
)
def test_trainable_count_is_that_of_the_paper(make_tuned, overrides, modules):
    """2 m d + d + m for each bottleneck (arXiv 1902.00751, section 2.1)."""
    m = 5
    expected = sum(number * (2 * m * d + d + m) for d, number in modules.items())
    assert count(make_tuned("tuner=adapter", "tuner.length=5", *overrides).model) == expected


def test_stands_behind_the_sub_layer_and_before_the_residual(make_tuned, make_batch):
    """layer(x) = y + mlp' + ..., with y = x + adapter(attention(norm x)) (figure 2 of the paper)."""
    layer = make_tuned("tuner=adapter").base.model.language_model.layers[1]
    attention, mlp = layer.self_attn.o_proj.adapter, layer.mlp.adapter
    for bottleneck in (attention, mlp):
        torch.nn.init.normal_(bottleneck.up.weight)
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], out=output))
    for name in ("self_attn.o_proj.adapter", "mlp.adapter"):
        module = layer.get_submodule(name)
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: (args[0], output)}))
    rotation = torch.ones(1, 7, 32), torch.zeros(1, 7, 32)
    with torch.no_grad():
        layer(torch.randn(1, 7, TEXT), position_embeddings=rotation)
        middle = seen["x"] + seen["self_attn.o_proj.adapter"][1]
        plain, adapted = seen["mlp.adapter"]
        torch.testing.assert_close(seen["out"], middle + adapted)
        expected = plain + mlp.up(torch.nn.functional.gelu(mlp.down(plain)))
        torch.testing.assert_close(adapted, expected)
        assert not torch.allclose(plain, adapted, atol=0.1)


@pytest.mark.parametrize("activation", list(Activation))
def test_starts_as_the_identity_with_the_papers_deviation(activation):
    bottleneck = Bottleneck(512, AdapterConfig(activation=activation), torch.device("cpu"))
    x = torch.randn(3, 512)
    assert torch.equal(bottleneck(x), x)
    # A normal of 0.01 cut off at two deviations has a deviation of 0.0088.
    assert bottleneck.down.weight.std().item() == pytest.approx(0.0088, rel=0.02)
    assert bottleneck.down.weight.abs().max() <= 0.02


def test_a_linear_bottleneck_is_a_product_of_low_rank():
    bottleneck = Bottleneck(16, AdapterConfig(length=3, activation=Activation.linear), torch.device("cpu"))
    torch.nn.init.normal_(bottleneck.up.weight)
    x = torch.randn(5, 16)
    torch.testing.assert_close(bottleneck(x), x + x @ (bottleneck.up.weight @ bottleneck.down.weight).T)


def test_weights_of_the_base_keep_their_names(make_tuned):
    base = make_tuned("tuner=full").base.state_dict()
    tuned = make_tuned("tuner=adapter", "freeze=none")
    missing, unexpected = tuned.base.load_state_dict(base, strict=False)
    assert unexpected == [] and set(missing) == tuned.adapter
    assert {component_of(name) for name in tuned.adapter} == set(Component)


def test_layer_norms_train_beside_it_as_in_the_paper(make_tuned, make_batch, tmp_path):
    from harness.tuner.own_format import attach

    norms = "tuner.modules_to_save=[input_layernorm,post_attention_layernorm]"
    tuned, batch = make_tuned("tuner=adapter", norms), make_batch(0, 1)
    trained = {name for name, p in tuned.model.named_parameters() if p.requires_grad}
    assert len(trained - tuned.adapter) == 8 and all("layernorm" in name for name in trained - tuned.adapter)
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if name in trained:
                parameter += 0.01
        expected = supervised_logits(tuned.base.eval(), batch)
    folder = tuned.export(tmp_path)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(registry._PACKAGE / "model" / "tiny_checkpoint")
    attach(plain, folder)
    with torch.no_grad():
        torch.testing.assert_close(supervised_logits(plain, batch), expected)


def test_a_full_component_trains_itself_beside_adapters_in_the_rest(make_tuned):
    tuned = make_tuned("tuner=adapter", "freeze=vit", "freeze.full=[aligner]")
    whole = {name for name, p in tuned.model.named_parameters() if p.requires_grad} - tuned.adapter
    aligner = {n for n, _ in make_tuned("tuner=full").base.named_parameters() if component_of(n) is Component.aligner}
    assert whole == aligner and {component_of(name) for name in tuned.adapter} == {Component.llm}


def test_checkpointing_changes_no_gradient(make_tuned, make_config, make_batch):
    tuned, batch = make_tuned("tuner=adapter", "freeze=none"), make_batch(0, 1)
    for parameter in tuned.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    gradients = []
    for option in ("false", "true"):
        registry.build("memory", make_config(f"memory.checkpointing={option}").memory, tuned.base)
        tuned.model.train().zero_grad()
        loss(tuned.base, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in tuned.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.any() and torch.equal(gradient, gradients[1][name]), name


def test_float32_adapters_train_over_a_bfloat16_base(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=adapter", "model.dtype=bfloat16", "freeze=none"), make_batch(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(tuned.base, batch)
    value.backward()
    with torch.no_grad():
        assert value.item() == pytest.approx(loss(make_tuned("tuner=full").base, batch).item(), rel=0.05)
    for name, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32 and (parameter.grad.any() or ".down." in name), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, r"tuner\.length=0: must be 1 or more"),
        ({"places": []}, r"tuner\.places=\[\]: name attention, mlp or both"),
        ({"places": [Place.mlp, Place.mlp]}, r"tuner\.places=\['mlp', 'mlp'\]: name attention, mlp or both, each once"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**options)


def test_an_unknown_activation_is_refused_with_the_known(make_config):
    with pytest.raises(UserError, match=r"tuner\.activation=swish: .*gelu"):
        make_config("tuner=adapter", "tuner.activation=swish")


def test_places_that_the_policy_leaves_nothing_of_are_refused(make_tuned):
    with pytest.raises(
        UserError, match=r"tuner\.places=\['attention'\]: the freeze policy leaves no sub-layer of that"
    ):
        make_tuned("tuner=adapter", "freeze=llm_vit", "tuner.places=[attention]")
