import pytest
import torch

from harness.errors import UserError
from harness.tuner import spectral
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


@pytest.mark.parametrize("options", [[], ["tuner.n_frequency=50", "freeze=none"]], ids=" ".join)
def test_a_training_step_is_that_of_peft(against_peft, options):
    (logits, grads), (expected, expected_grads), found = against_peft("tuner=fourierft", *options, spread=0.3)
    assert found
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert all(grad.abs().max() > 0 for grad in grads.values())
    for key, grad in expected_grads.items():
        torch.testing.assert_close(grads[key], grad, atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (5, 7), (6, 7), (5, 8), (1, 8), (4, 1)], ids=str)
def test_half_a_spectrum_with_all_entries_gives_the_real_part(shape):
    """Entries, their mirrors and those that mirror themselves, for even and odd sizes; Re(F^-1(S)) as PEFT takes it."""
    rows, columns = torch.arange(shape[0] * shape[1])[torch.randperm(shape[0] * shape[1])], shape[1]
    values = torch.randn(len(rows), requires_grad=True)
    places, sources = spectral.fold(torch.stack([rows // columns, rows % columns]), *shape)
    ours = spectral._inverse(values / (2 * values.numel()), places, sources, *shape)
    expected = torch.fft.ifft2(torch.zeros(values.numel()).index_put((rows,), values).view(shape)).real
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(shape)
    grads = [torch.autograd.grad((out * weights).sum(), values)[0] for out in (ours, expected)]
    torch.testing.assert_close(*grads)


@pytest.fixture
def layer(make_tuned):
    layer = layers(make_tuned("tuner=fourierft").model)[0].train()
    torch.nn.init.normal_(layer.fourierft_spectrum["default"])
    return layer


def test_operators_keep_what_compilers_expect_of_them(layer):
    spectrum = layer.fourierft_spectrum["default"]
    told = (layer.places, layer.sources, layer.out_features, layer.in_features)
    torch.library.opcheck(spectral._inverse, (spectrum, *told))
    grad = torch.randn(layer.out_features, layer.in_features)
    torch.library.opcheck(spectral._gradient, (grad, layer.places, len(spectrum)))


def test_layers_that_are_off_or_merged_or_evaluated_go_the_way_of_peft(layer):
    x, calls, apart = torch.randn(3, layer.in_features), [], layer.forward_apart
    layer.forward_apart = lambda x: calls.append(1) or apart(x)
    with torch.no_grad():
        changed = layer(x)
        assert not calls
        torch.testing.assert_close(layer.eval()(x), changed, atol=1e-5, rtol=1e-5)
        layer.train().enable_adapters(False)
        torch.testing.assert_close(layer(x), layer.base_layer(x))
        layer.enable_adapters(True)
        layer.merge()
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=1e-5)
        layer.unmerge()
        assert len(calls) == 3
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=1e-5)
    assert len(calls) == 3 and (changed - layer.base_layer(x)).abs().max() > 0.1


def test_a_step_is_one_graph(layer):
    x, results = torch.randn(3, layer.in_features), []
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(0)
        layer.zero_grad()
        out = forward(x)
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in layer.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results)


def test_autocast_changes_the_type_of_the_products_alone(layer):
    x = torch.randn(64, layer.in_features)
    expected = layer(x)
    layer.base_layer.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, narrow = layer(x), layer(x.bfloat16())
    assert (ours.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert (ours - expected).norm() < 0.01 * expected.norm()
    narrow.float().square().sum().backward()
    assert layer.fourierft_spectrum["default"].grad.dtype == torch.float32


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_for_nothing_and_compiles(layer, check_on_gpu):
    check_on_gpu(layer)


def test_places_are_those_that_peft_draws_once_for_each_size(make_tuned, monkeypatch):
    sizes, original = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda size, **options: sizes.append(size) or original(size, **options))
    tuned = make_tuned("tuner=fourierft")
    layers = [layer for layer in tuned.model.modules() if hasattr(layer, "fourierft_spectrum")]
    assert len(sizes) == len(set(sizes)) < len(layers)
    layer = layers[-1]
    seed = torch.Generator().manual_seed(layer.fourierft_random_loc_seed["default"])
    number = layer.fourierft_n_frequency["default"]
    places = original(layer.in_features * layer.out_features, generator=seed)[:number]
    expected = torch.stack([places // layer.in_features, places % layer.in_features])
    assert torch.equal(layer.indices["default"], expected)
