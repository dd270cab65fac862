import copy

import pytest
import torch

from harness import registry
from harness.errors import UserError
from harness.optim.galore import GaloreConfig, ProjectionType
from harness.optim.galore import build as build_galore
from harness.optim.q_galore import QGaloreConfig
from harness.optim.q_galore import build as build_q_galore
from harness.optim.quantize import unpack_even

M, N, RANK = 32, 96, 8
NAME = "model.language_model.layers.0.mlp.up_proj.weight"


def make(build, config, weight=None):
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(M, N)) if weight is None else weight
    return weight, build(config, [{"params": [(NAME, weight)], "lr": 1e-2, "weight_decay": 0.1, "name": "llm"}])


def run(weight, optimizer, gradients):
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()


def noise(seed, scale=1.0):
    return torch.randn(M, N, generator=torch.Generator().manual_seed(seed)) * scale


def size(value):
    """Bytes of all tensors, however deep."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value.values())) if isinstance(value, dict) else 0


def test_without_quantisation_and_lengthening_it_is_galore():
    plain = QGaloreConfig(rank=RANK, quantize_state=False, gamma_proj=1.0, update_proj_gap=2)
    got, first = make(build_q_galore, plain)
    want, second = make(build_galore, GaloreConfig(rank=RANK, update_proj_gap=2))
    for pair in ((got, first), (want, second)):
        run(*pair, [noise(seed) for seed in range(5)])
    assert torch.equal(got, want)


def intervals(gradients, **settings):
    """Runs and returns the interval after each step."""
    weight, optimizer = make(build_q_galore, QGaloreConfig(rank=RANK, update_proj_gap=2, queue_size=3, **settings))
    gaps = []
    for gradient in gradients:
        run(weight, optimizer, [gradient])
        gaps.append(optimizer.state[weight]["gap"])
    return gaps


def test_projections_that_stay_alike_lengthen_the_interval():
    """Three cosines are there after the fourth projection, at step 6; the next ones are at 10, 18 and 34."""
    alike = [noise(0) + noise(seed, 0.05) for seed in range(1, 41)]
    gaps = intervals(alike)
    assert gaps == [2] * 6 + [4] * 4 + [8] * 8 + [16] * 16 + [32] * 6
    assert intervals(alike, gamma_proj=1.5)[:11] == [2] * 6 + [3] * 3 + [4] * 2
    assert intervals(alike, proj_quant=True) == gaps


def test_random_projections_and_a_high_threshold_keep_the_interval():
    assert set(intervals([noise(seed) for seed in range(40)])) == {2}
    assert set(intervals([noise(0) + noise(seed, 0.05) for seed in range(40)], cos_threshold=1.0)) == {2}


def test_the_sign_of_a_singular_vector_does_not_count():
    signs = [noise(0) * (-1) ** (seed // 2) + noise(seed, 0.05) for seed in range(1, 12)]
    assert intervals(signs)[-1] == 8


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_projection_lies_within_its_bound(bits):
    settings = {"proj_type": ProjectionType.full, "rank": RANK}
    rough, first = make(build_q_galore, QGaloreConfig(proj_quant=True, proj_bits=bits, proj_group_size=16, **settings))
    exact, second = make(build_galore, GaloreConfig(**settings))
    run(rough, first, [noise(0)])
    run(exact, second, [noise(0)])
    for side, rows in (("left", M), ("right", N)):
        packed, basis = first.state[rough][side], second.state[exact][side]
        error = (unpack_even(packed, bits, 16, (rows, RANK)) - basis).abs().view(-1, 16)
        assert (error <= packed["spacing"] * 0.501).all() and packed["spacing"].max() < 2 / (2**bits - 1)


def test_the_state_is_as_small_as_its_bits():
    """A byte a moment and 4 more for 256; half a byte a value of the projection and 8 more for 256."""
    weight, optimizer = make(build_q_galore, QGaloreConfig(rank=RANK, proj_quant=True))
    run(weight, optimizer, [noise(0)])
    state = optimizer.state[weight]
    assert state["exp_avg"]["codes"].dtype == torch.int8 and state["exp_avg_sq"]["codes"].dtype == torch.uint8
    groups = N * RANK // 256
    assert size(state) == 2 * (N * RANK + 4 * groups) + M * RANK // 2 + 8 + 4
    full, galore = make(build_galore, GaloreConfig(rank=RANK))
    run(full, galore, [noise(0)])
    assert size(state) < size(galore.state[full]) / 3.9


@pytest.mark.parametrize("settings", [{}, {"proj_quant": True}, {"quantize_weights": True}], ids=str)
def test_it_descends_as_galore_does(settings):
    """Least squares at equal intervals: the loss falls as far, within a tenth of the way."""
    target = noise(7)
    ends = []
    for build, config in (
        (build_galore, GaloreConfig(rank=RANK, update_proj_gap=10, weight_decay=0.0)),
        (build_q_galore, QGaloreConfig(rank=RANK, update_proj_gap=10, gamma_proj=1.0, weight_decay=0.0, **settings)),
    ):
        weight, optimizer = make(build, config)
        start = (weight - target).square().mean().item()
        for _ in range(200):
            run(weight, optimizer, [(weight - target).detach()])
        ends.append((weight - target).square().mean().item() / start)
    assert ends[0] < 0.65 and ends[1] == pytest.approx(ends[0], abs=0.1 * (1 - ends[0]))


def test_quantised_weights_take_256_values_a_group():
    weight, optimizer = make(build_q_galore, QGaloreConfig(rank=RANK, quantize_weights=True))
    run(weight, optimizer, [noise(seed) for seed in range(3)])
    for group in weight.detach().view(-1, 256):
        place = (group - group.min()) / ((group.max() - group.min()) / 255)
        torch.testing.assert_close(place, place.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"proj_quant": True, "quantize_weights": True}], ids=str)
def test_a_state_loaded_within_an_interval_goes_on_bit_for_bit(settings):
    config = QGaloreConfig(rank=RANK, update_proj_gap=2, queue_size=2, **settings)
    weight, optimizer = make(build_q_galore, config)
    run(weight, optimizer, [noise(0) + noise(seed, 0.05) for seed in range(7)])
    state = copy.deepcopy(optimizer.state_dict())
    other, resumed = make(build_q_galore, config, copy.deepcopy(weight))
    resumed.load_state_dict(state)
    assert resumed.state[other]["cosines"] == optimizer.state[weight]["cosines"]
    torch.rand(5)
    for pair in ((weight, optimizer), (other, resumed)):
        run(*pair, [noise(0) + noise(seed, 0.05) for seed in range(7, 14)])
    assert torch.equal(weight, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proj_bits": 3}, r"optim\.proj_bits=3: must be 4 or 8"),
        ({"proj_group_size": 0}, r"optim\.proj_group_size=0: must be 1 or more"),
        ({"queue_size": 0}, r"optim\.queue_size=0: must be 1 or more"),
        ({"cos_threshold": 1.1}, r"optim\.cos_threshold=1\.1: must be 0 to 1"),
        ({"gamma_proj": 0.5}, r"optim\.gamma_proj=0\.5: must be 1 or more"),
        ({"rank": 0}, r"optim\.rank=0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        QGaloreConfig(**settings)


def test_weights_of_16_bits_are_not_quantised():
    weight = torch.nn.Parameter(torch.randn(M, N, dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"optim\.quantize_weights=True: .*set tuner\.dtype=float32"):
        make(build_q_galore, QGaloreConfig(rank=RANK, quantize_weights=True), weight)


def test_it_is_registered():
    entry = registry.get("optim", "q_galore")
    assert (entry.config, entry.build) == (QGaloreConfig, build_q_galore)
    assert QGaloreConfig.full_only
