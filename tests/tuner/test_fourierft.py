import pytest
import torch

from harness.errors import UserError
from harness.tuner.fourierft import FourierftConfig


def layers(model):
    return [module for module in model.modules() if hasattr(module, "fourierft_spectrum")]


def test_trainable_count_is_that_of_the_paper(make_tuned):
    """n for each adapted matrix, whatever its size (arXiv 2405.03003, section 3.2)."""
    model = make_tuned("tuner=fourierft", "tuner.n_frequency=100", "freeze=none").model
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 100 * len(layers(model)) > 100 * 4 * 7


def test_update_is_the_scaled_inverse_transform_of_a_sparse_spectrum(make_tuned):
    """Equations 2 to 4, summed up by hand: sum over entries of c cos(2 pi (p j / d1 + q k / d2)) / (d1 d2)."""
    model = make_tuned("tuner=fourierft", "tuner.n_frequency=3", "tuner.scaling=300").model
    layer = layers(model)[0]
    torch.nn.init.normal_(layer.fourierft_spectrum["default"])
    outputs, inputs = layer.base_layer.weight.shape
    j, k = torch.arange(outputs)[:, None], torch.arange(inputs)[None, :]
    expected = torch.zeros(outputs, inputs)
    for (p, q), value in zip(layer.indices["default"].T, layer.fourierft_spectrum["default"], strict=True):
        expected += value * torch.cos(2 * torch.pi * (p * j / outputs + q * k / inputs)) / (outputs * inputs)
    x = torch.randn(2, inputs)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base_layer(x) + 300 * x @ expected.T, atol=1e-4, rtol=1e-4)


def test_entries_lie_alike_in_layers_of_a_shape_and_by_their_seed(make_tuned):
    def places(*options):
        model = make_tuned("tuner=fourierft", "tuner.target_modules=[k_proj]", *options).model
        return [layer.indices["default"] for layer in layers(model)]

    first = places()
    assert all(torch.equal(other, first[0]) for other in first) and len(first[0].unique(dim=1).T) == 2000
    assert not torch.equal(places("tuner.random_loc_seed=1")[0], first[0])


@pytest.mark.parametrize(("init", "spread"), [("zero", 0.0), ("normal", 1.0)])
def test_entries_start_at_zero_or_as_in_the_paper(make_tuned, init, spread):
    model = make_tuned("tuner=fourierft", f"tuner.init={init}").model
    values = torch.cat([layer.fourierft_spectrum["default"] for layer in layers(model)])
    assert values.std().item() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_frequency": 0}, r"tuner\.n_frequency=0: must be 1 or more"),
        ({"scaling": 0.0}, r"tuner\.scaling=0\.0: must be more than 0"),
        ({"random_loc_seed": -1}, r"tuner\.random_loc_seed=-1: is a seed"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        FourierftConfig(**options)


def test_more_entries_than_a_layer_has_are_refused(make_tuned):
    with pytest.raises(UserError, match=r"tuner\.n_frequency=6145: is more than the 6144 entries of .*k_proj"):
        make_tuned("tuner=fourierft", "tuner.n_frequency=6145")
