"""Our training forward against transformers' own: logits, loss and every gradient."""

import pytest
import torch

from harness.memory.standard import StandardConfig, build
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits


@pytest.fixture
def stock_results(stock_inputs):
    """Runs transformers' forward, with labels and its own position ids, on padded rows."""

    def run(model, samples):
        model.zero_grad()
        inputs = stock_inputs(samples)
        outputs = model(**inputs)
        outputs.loss.backward()
        predicts = (inputs["labels"] != -100).flatten().nonzero().flatten() - 1
        logits = outputs.logits.detach().flatten(0, 1).index_select(0, predicts).float()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return logits, outputs.loss.item(), gradients

    return run


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_everything_agrees_with_transformers(
    make_tuned, samples, padded, results, stock_results, assert_same, attention
):
    tuned = make_tuned("tuner=full", "freeze=none", f"model.attention={attention}")
    ours = results(tuned.base, padded(tuned.base, samples))
    assert_same(ours, stock_results(tuned.base, samples))
    assert len(ours[2]) == len(list(tuned.base.parameters())) or not any(sample.grids for sample in samples)


@pytest.mark.parametrize("tuner", ["lora", "dora"])
def test_adapters_take_part(make_tuned, make_samples, padded, results, stock_results, assert_same, tuner):
    tuned, samples = make_tuned(f"tuner={tuner}", "freeze=none", "tuner.dropout=0"), make_samples("mixed")
    for name, parameter in tuned.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ours = results(tuned.base, padded(tuned.base, samples))
    assert any("visual" in name for name in ours[2]) and all("lora" in name for name in ours[2])
    assert_same(ours, stock_results(tuned.base, samples))


def test_a_mixture_of_experts_agrees(make_tuned, moe_folder, make_samples, padded, results, stock_results, assert_same):
    tuned, samples = make_tuned("tuner=full", "freeze=none", f"model.path={moe_folder}"), make_samples("mixed")
    ours = results(tuned.base, padded(tuned.base, samples))
    assert any("experts" in name for name in ours[2])
    assert_same(ours, stock_results(tuned.base, samples))


@pytest.mark.parametrize("switched", [{"checkpointing": True}, {"checkpointing": True, "vit_checkpointing": False}])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_checkpointing_changes_no_gradient(make_tuned, mixed, padded, results, assert_same, tuner, switched):
    overrides = {"full": [], "lora": ["tuner.dropout=0"]}[tuner]
    model = make_tuned(f"tuner={tuner}", "freeze=none", *overrides).base.train()
    batch = padded(model, mixed)
    plain = results(model, batch)
    build(StandardConfig(**switched), model)
    calls = {"language": 0, "visual": 0}
    firsts = [("language", layer.input_layernorm) for layer in model.model.language_model.layers]
    firsts += [("visual", block.norm1) for block in model.model.visual.blocks]
    for name, norm in firsts:
        norm.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    assert_same(results(model, batch), plain, logits=0, gradients=1e-7)
    assert calls["language"] == 2 * len(model.model.language_model.layers)
    assert calls["visual"] == len(model.model.visual.blocks) * (1 if "vit_checkpointing" in switched else 2)


def test_padding_on_the_left_is_the_same(make_tuned, make_samples, padded, results, assert_same):
    tuned, samples = make_tuned("tuner=full", "freeze=none"), make_samples("mixed")
    assert_same(
        results(tuned.base, padded(tuned.base, samples, side="left")), results(tuned.base, padded(tuned.base, samples))
    )


def test_each_visual_token_gets_its_own_feature(make_tuned, make_samples, padded):
    """The order of the index matters: a forward that spread features otherwise would not notice."""
    tuned, samples = make_tuned("tuner=full"), make_samples("images")
    batch = padded(tuned.base, samples)
    with torch.no_grad():
        right = supervised_logits(tuned.base, batch)
        batch.visual_index = batch.visual_index.flip(0)
        assert (supervised_logits(tuned.base, batch) - right).abs().max() > 0.01


def test_loss_weights_scale_each_token(make_tuned, mixed, padded):
    tuned = make_tuned("tuner=full")
    batch = padded(tuned.base, mixed)
    logits = supervised_logits(tuned.base, batch)
    assert logits.dtype == torch.float32 and len(logits) == batch.num_supervised
    single = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    batch.loss_weights = torch.rand(batch.num_supervised)
    torch.testing.assert_close(loss_sum(logits, batch), (single * batch.loss_weights).sum())


def test_the_head_sees_supervised_positions_only(make_tuned, mixed, padded):
    tuned = make_tuned("tuner=full")
    batch = padded(tuned.base, mixed)
    seen = []
    tuned.base.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    supervised_logits(tuned.base, batch)
    assert seen == [(batch.num_supervised, 96)]


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_text_that_passes_the_vision_tower_gives_it_zero_gradients(make_tuned, make_samples, padded, tuner):
    """Where ranks average gradients, none may be missing; and the loss is that of the text."""
    tuned = make_tuned(f"tuner={tuner}", "freeze=none")
    batch = padded(tuned.base, make_samples("text"))
    plain = loss_sum(supervised_logits(tuned.base, batch), batch)
    loss = loss_sum(supervised_logits(tuned.base, batch, always_see=True), batch)
    assert loss.item() == plain.item() > 0
    loss.backward()
    trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    vision = {name: p for name, p in trained.items() if component_of(name) is not Component.llm}
    assert {component_of(name) for name in vision} == {Component.vit, Component.aligner}
    for name, parameter in vision.items():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert any(p.grad.any() for name, p in trained.items() if name not in vision)


def test_text_alone_leaves_the_vision_tower_without_gradients(make_tuned, make_samples, padded):
    tuned = make_tuned("tuner=full", "freeze=none")
    batch = padded(tuned.base, make_samples("text"))
    loss_sum(supervised_logits(tuned.base, batch), batch).backward()
    assert all(p.grad is None for p in tuned.base.model.visual.parameters())


def test_images_and_videos_pass_the_vision_tower_once(make_tuned, mixed, padded):
    tuned = make_tuned("tuner=full", "freeze=none")
    seen = []
    tuned.base.model.visual.patch_embed.register_forward_pre_hook(lambda *_: seen.append(1))
    supervised_logits(tuned.base, padded(tuned.base, mixed), always_see=True)
    assert len(seen) == 1
