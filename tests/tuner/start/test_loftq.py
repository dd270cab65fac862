import pytest
import torch

from harness.tuner.start.loftq import _NF4, fake_quantised

Q_PROJ = "language_model.layers.0.self_attn.q_proj"


def test_nf4_takes_the_nearest_of_sixteen_values_in_blocks_of_64():
    """(arXiv 2305.14314, section 3 and appendix E)"""
    weight = torch.randn(4, 96)
    blocks = weight.flatten().view(-1, 64)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    code = torch.tensor(_NF4)
    nearest = code[(scaled[..., None] - code).abs().argmin(-1)]
    expected = (nearest * blocks.abs().amax(1, keepdim=True)).view_as(weight)
    torch.testing.assert_close(fake_quantised(weight, 4), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_twice_changes_nothing_more(bits):
    once = fake_quantised(torch.randn(5, 33), bits)
    torch.testing.assert_close(fake_quantised(once, bits), once)
    assert not fake_quantised(torch.zeros(2, 3), bits).any()


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.randn(64, 96, device=device)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    torch.testing.assert_close(fake_quantised(weight, 4), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_and_b_take_back_some_of_what_quantisation_took(start_of, product, bits):
    """The distance to W falls below that of plain quantisation, and with the alternations (section 3.2)."""
    options = ["tuner.init=loftq", f"tuner.loftq.bits={bits}", "tuner.rank=8"]
    weight, layer = start_of(Q_PROJ, *options)
    plain = fake_quantised(weight, bits)
    torch.testing.assert_close(layer.base_layer.weight, plain)
    once = (weight - layer.base_layer.weight - product(layer)).norm()
    values = torch.linalg.svdvals(weight - plain)
    torch.testing.assert_close(once, values[8:].norm(), atol=1e-4, rtol=1e-4)
    assert once < 0.95 * (weight - plain).norm()


def test_alternating_comes_closer(start_of, product, outlook):
    distances = {}
    for iterations in (1, 5):
        outlook.start_file.unlink(missing_ok=True)
        weight, layer = start_of(Q_PROJ, "tuner.init=loftq", f"tuner.loftq.iterations={iterations}")
        base = layer.base_layer.weight
        torch.testing.assert_close(fake_quantised(base, 4), base)
        distances[iterations] = (weight - base - product(layer)).norm()
    assert distances[5] < distances[1]


def test_the_start_is_closer_to_the_checkpoint_than_its_quantisation(make_tuned, make_batch):
    from harness.model.forward import supervised_logits

    batch = make_batch(0, 1)
    tuned, exact = make_tuned("tuner.init=loftq", "tuner.rank=16"), make_tuned("tuner=full").base
    tuned.model.eval()
    with torch.no_grad():
        expected, found = supervised_logits(exact, batch), supervised_logits(tuned.base, batch)
        with tuned.model.disable_adapter():
            quantised = supervised_logits(tuned.base, batch)
    assert (found - expected).norm() < 0.8 * (quantised - expected).norm()
