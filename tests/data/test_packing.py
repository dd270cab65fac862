"""The plan, and that a packed batch is the same batch: logits, loss and every gradient."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.collator import collate, collate_packed
from harness.data.image import ImageRef
from harness.data.packing import best_fit, efficiency
from harness.data.row import Message, Row
from harness.model.forward import loss_sum, supervised_logits


def test_every_sample_is_packed_once_within_the_capacity():
    lengths = [random.Random(0).randint(1, 900) for _ in range(2000)]
    packs = best_fit(lengths, 1000, seed=0)
    assert sorted(sample for pack in packs for sample in pack) == list(range(2000))
    assert max(sum(lengths[sample] for sample in pack) for pack in packs) <= 1000


def test_captions_fill_packs_to_97_percent():
    """Lengths around those of the caption workload: 716 tokens on average."""
    draw = random.Random(1)
    lengths = [draw.randint(14, 28) * draw.randint(14, 28) + draw.randint(160, 320) for _ in range(5000)]
    assert efficiency(best_fit(lengths, 8192, seed=0), lengths, 8192) > 0.97


def test_the_plan_depends_on_lengths_and_seed_alone():
    lengths = [5, 5, 5, 5, 3, 3, 2, 2, 9]
    assert best_fit(lengths, 10, seed=1) == best_fit(lengths, 10, seed=1)
    counts = {len(best_fit(lengths, 10, seed=seed)) for seed in range(5)}
    assert counts == {4}


@pytest.fixture
def samples(encoder):
    """Text alone, one image, three images of several sizes, two turns."""
    pixels = np.random.default_rng(0)

    def picture(height, width):
        image = Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8))
        return ImageRef(image, "test:1", 10**6)

    rows = [
        Row((Message("user", ("hello there",)), Message("assistant", ("hello",))), (), "test:1"),
        Row((Message("user", (None, "What is it?")), Message("assistant", ("a dog",))), (picture(64, 96),), "test:2"),
        Row(
            (
                Message("user", (None, "and", None)),
                Message("assistant", ("two",)),
                Message("user", ("next", None)),
                Message("assistant", ("three pictures",)),
            ),
            (picture(64, 64), picture(100, 40), picture(160, 96)),
            "test:3",
        ),
    ]
    return [encoder.load(encoder.encode(row)) for row in rows]


def logits_and_gradients(tuned, batch):
    tuned.model.zero_grad()
    logits = supervised_logits(tuned.base, batch)
    loss = loss_sum(logits, batch)
    loss.backward()
    return logits.detach(), loss.item(), {name: p.grad.clone() for name, p in tuned.model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["one pack", "two packs", "padding free"])
def test_packed_equals_padded(make_tuned, encoder, samples, attention, layout):
    tuned = make_tuned("tuner=full", "freeze=none", f"model.attention={attention}")
    tuned.model.eval()
    packs = {"one pack": [samples], "two packs": [samples[:1], samples[1:]], "padding free": [samples]}[layout]
    length = None if layout == "padding free" else 160
    padded = logits_and_gradients(tuned, collate(samples, encoder.pad_token_id))
    packed = logits_and_gradients(tuned, collate_packed(packs, encoder.pad_token_id, length))
    torch.testing.assert_close(packed[0], padded[0], atol=1e-5, rtol=1e-5)
    assert packed[1] == pytest.approx(padded[1], abs=1e-5)
    for name, gradient in packed[2].items():
        torch.testing.assert_close(gradient, padded[2][name], atol=1e-5, rtol=1e-4, msg=name)


def test_three_row_positions_would_mix_samples(make_tuned, encoder, samples):
    """Without the text row the samples of a pack see each other: the trap that the four rows are there for."""
    tuned = make_tuned("tuner=full")
    tuned.model.eval()
    batch = collate_packed([samples], encoder.pad_token_id, None)
    with torch.no_grad():
        right = supervised_logits(tuned.base, batch)
        batch.position_ids = batch.position_ids[1:]
        wrong = supervised_logits(tuned.base, batch)
    assert (right - wrong).abs().max() > 0.01


def test_packed_batch_counts_what_it_holds(encoder, samples):
    batch = collate_packed([samples], encoder.pad_token_id, 128)
    assert batch.input_ids.shape == (1, 128) and batch.attention_mask is None
    assert (batch.num_samples, batch.num_tokens) == (3, sum(len(item.sample.ids) for item in samples))
    assert batch.origins == ["test:1", "test:2", "test:3"]
    flat = batch.input_ids.flatten()
    assert torch.equal(flat[batch.target_index + 1], batch.targets)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.packing=true"], r"data\.packing_length=null: say how many tokens"),
        (["data.packing_length=512"], "has no effect without data.packing=true"),
        (["data.packing=true", "data.packing_length=512", "data.padding_free=true"], "set one of the two"),
    ],
)
def test_settings_that_contradict_are_refused(make_config, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config(*overrides)
