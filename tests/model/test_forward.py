"""Our training forward against transformers' own."""

import pytest
import torch

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
