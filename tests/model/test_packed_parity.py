"""A packed batch is the same batch as the padded one: logits, loss and every gradient."""

import pytest
import torch

from harness.model.attention import use_varlen
from harness.model.forward import supervised_logits


@pytest.fixture
def make_model(make_tuned):
    """Loads the tiny model with everything trainable; varlen runs its plain implementation on the CPU."""

    def make(attention: str, *overrides: str):
        kept = [] if attention == "varlen" else [f"model.attention={attention}"]
        model = make_tuned("tuner=full", "freeze=none", *kept, *overrides).base
        if attention == "varlen":
            use_varlen(model)
        return model

    return make


@pytest.fixture
def one_by_one(lay_out, results):
    """Runs each sample alone and adds up: logits in order, mean loss over all tokens, gradients of that."""

    def run(model, samples):
        parts = []
        for sample in samples:
            batch = lay_out(model, [[sample]])
            parts.append((*results(model, batch), batch.num_supervised))
        total = sum(part[3] for part in parts)
        gradients = {}
        for _, _, gradient, count in parts:
            for name, value in gradient.items():
                gradients[name] = gradients.get(name, 0) + value * (count / total)
        return torch.cat([part[0] for part in parts]), sum(part[1] * part[3] for part in parts) / total, gradients

    return run


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
def test_packed_equals_one_by_one(make_model, samples, lay_out, results, one_by_one, assert_same, attention):
    model = make_model(attention)
    expected = one_by_one(make_model("sdpa"), samples)
    longest = sum(len(sample.ids) for sample in samples)
    assert_same(results(model, lay_out(model, [samples], length=longest)), expected)
    assert_same(results(model, lay_out(model, [samples], length=longest + 7)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("layout", ["two packs", "padded", "padded left"])
def test_layouts_are_the_same(make_model, mixed, lay_out, padded, results, one_by_one, assert_same, attention, layout):
    model = make_model(attention)
    batch = {
        "two packs": lambda: lay_out(model, [mixed[:1], mixed[1:]], length=128),
        "padded": lambda: padded(model, mixed),
        "padded left": lambda: padded(model, mixed, side="left"),
    }[layout]()
    assert_same(results(model, batch), one_by_one(make_model("sdpa"), mixed))


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_a_packed_mixture_of_experts_is_the_same(
    make_model, moe_folder, mixed, lay_out, results, one_by_one, assert_same, attention
):
    path = f"model.path={moe_folder}"
    model = make_model(attention, path)
    assert_same(results(model, lay_out(model, [mixed], length=128)), one_by_one(make_model("sdpa", path), mixed))


def test_three_row_positions_would_mix_samples(make_model, samples, lay_out):
    """Without a text row that begins anew, samples of a pack see each other: the trap that the fourth row is for."""
    model = make_model("sdpa")
    batch = lay_out(model, [samples], length=sum(len(sample.ids) for sample in samples))
    with torch.no_grad():
        right = supervised_logits(model, batch)
        batch.position_ids[0] = torch.arange(batch.input_ids.shape[1])
        assert (supervised_logits(model, batch) - right).abs().max() > 0.1
        batch.position_ids = batch.position_ids[1:]
        with pytest.raises(RuntimeError, match=r"expand|size of tensor"):
            supervised_logits(model, batch)


def test_stock_transformers_with_three_rows_is_another_model(make_model, make_samples, lay_out, stock_inputs):
    model, samples = make_model("sdpa"), make_samples("images")
    batch = lay_out(model, [samples], length=sum(len(sample.ids) for sample in samples))
    inputs = {key: stock_inputs(samples)[key] for key in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        ours = supervised_logits(model, batch)
        gaps = []
        for rows in (batch.position_ids, batch.position_ids[1:]):
            logits = model(input_ids=batch.input_ids, position_ids=rows, use_cache=False, **inputs).logits
            gaps.append((logits[0, batch.target_index] - ours).abs().max().item())
    assert gaps[0] < 1e-5 and gaps[1] > 0.1


def test_varlen_goes_by_cu_seqlens_alone(make_model, mixed, lay_out):
    """Were they ignored, joining all samples into one would change nothing."""
    model = make_model("varlen")
    batch = lay_out(model, [mixed], length=128)
    with torch.no_grad():
        right = supervised_logits(model, batch)
        batch.position_ids[0] = 0
        torch.testing.assert_close(supervised_logits(model, batch), right, atol=0, rtol=0)
        batch.cu_seqlens, batch.max_seqlen = torch.tensor([0, 128], dtype=torch.int32), 128
        assert (supervised_logits(model, batch) - right).abs().max() > 0.1
