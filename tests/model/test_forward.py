"""Our training forward against transformers' own."""

import pytest
import torch

from harness.data.collator import collate
from harness.data.row import Message, Row
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits


def stock_loss(model, batch):
    """The loss that transformers computes from labels, with its own position ids."""
    labels = torch.full(batch.input_ids.shape, -100)
    labels.view(-1)[batch.target_index + 1] = batch.targets
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.image_grid_thw,
        mm_token_type_ids=(batch.input_ids == model.config.image_token_id).long(),
        labels=labels,
    ).loss


@pytest.mark.parametrize("rows", [(0,), (1, 2, 3, 4)])
@pytest.mark.parametrize("tuner", ["full", "lora", "dora"])
def test_loss_agrees_with_transformers(make_tuned, make_batch, tuner, rows):
    tuned, batch = make_tuned(f"tuner={tuner}"), make_batch(*rows)
    tuned.model.eval()
    with torch.no_grad():
        ours = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
        assert ours.item() == pytest.approx(stock_loss(tuned.base, batch).item(), abs=1e-5)


def test_gradients_agree_with_transformers(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=full", "freeze=none"), make_batch(5, 6, 7)
    (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
    ours = {name: p.grad.clone() for name, p in tuned.model.named_parameters()}
    tuned.model.zero_grad()
    stock_loss(tuned.base, batch).backward()
    for name, parameter in tuned.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_loss_weights_scale_each_token(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=full"), make_batch(0, 1)
    logits = supervised_logits(tuned.base, batch)
    plain = loss_sum(logits, batch)
    batch.loss_weights = torch.full((batch.num_supervised,), 2.0)
    torch.testing.assert_close(loss_sum(logits, batch), 2 * plain)


@pytest.fixture
def text_batch(encoder):
    """A batch of two rows without an image."""
    turns = [("What is two and two?", "four"), ("hello", "good morning")]
    rows = [Row((Message("user", (q,)), Message("assistant", (a,))), (), f"rows.jsonl:{q}") for q, a in turns]
    batch = collate([encoder.load(encoder.encode(row)) for row in rows], encoder.pad_token_id)
    assert batch.pixel_values is None and batch.num_visual == 0
    return batch


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_text_that_passes_the_vision_tower_gives_it_zero_gradients(make_tuned, text_batch, tuner):
    """Where ranks average gradients, none may be missing; and the loss is that of the text."""
    tuned = make_tuned(f"tuner={tuner}", "freeze=none")
    plain = loss_sum(supervised_logits(tuned.base, text_batch), text_batch)
    loss = loss_sum(supervised_logits(tuned.base, text_batch, always_see=True), text_batch)
    assert loss.item() == plain.item() > 0
    loss.backward()
    trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    vision = {name: p for name, p in trained.items() if component_of(name) is not Component.llm}
    assert {component_of(name) for name in vision} == {Component.vit, Component.aligner}
    for name, parameter in vision.items():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert any(p.grad.any() for name, p in trained.items() if name not in vision)


def test_text_alone_leaves_the_vision_tower_without_gradients(make_tuned, text_batch):
    tuned = make_tuned("tuner=full", "freeze=none")
    loss_sum(supervised_logits(tuned.base, text_batch), text_batch).backward()
    assert all(p.grad is None for p in tuned.base.model.visual.parameters())


def test_a_batch_with_images_is_not_shown_another(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=full", "freeze=none"), make_batch(0, 1)
    seen = []
    tuned.base.model.visual.register_forward_hook(lambda *_: seen.append(1))
    supervised_logits(tuned.base, batch, always_see=True)
    assert len(seen) == 1
