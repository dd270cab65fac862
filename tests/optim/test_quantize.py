import math

import pytest
import torch

from harness.optim.quantize import pack_even, pack_moment, round_even_, unpack_even, unpack_moment


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(7, 33), (3, 5), (1,), (4, 256)])
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (8, 16), (4, 7), (8, 256)])
def test_the_error_of_even_codes_is_within_half_a_step_of_their_group(shape, bits, group):
    values = torch.randn(shape)
    packed = pack_even(values, bits, group)
    error = (unpack_even(packed, bits, group, shape) - values).abs().flatten()
    bound = packed["spacing"].expand(-1, group).flatten()[: values.numel()] / 2
    assert (error <= bound * 1.001 + 1e-7).all()
    assert packed["spacing"].max() <= (values.max() - values.min()) / (2**bits - 1) * 1.001 + 1e-30


def test_four_bits_take_half_a_byte():
    assert pack_even(torch.randn(8, 32), 4, 256)["codes"].numel() == 128
    assert pack_even(torch.randn(8, 32), 8, 256)["codes"].numel() == 256


def test_equal_values_survive_even_codes():
    values = torch.full((5,), 3.5)
    assert torch.equal(unpack_even(pack_even(values, 4, 4), 4, 4, (5,)), values)


def test_rounding_by_chance_keeps_the_mean_and_what_is_on_the_grid():
    values = torch.tensor([0.0, 0.3, 0.5, 255.0])
    drawn = values.repeat(2000, 1)
    round_even_(drawn, 8, 4, dice())
    assert torch.equal(drawn, drawn.round())
    torch.testing.assert_close(drawn.mean(0), values, atol=0.05, rtol=0)


@pytest.mark.parametrize(("signed", "step"), [(True, 7 * math.log(10) / 126), (False, 7 * math.log(10) / 255)])
def test_the_error_of_a_moment_is_within_the_distance_of_its_codes(signed, step):
    values = torch.logspace(-6.9, 0, 1000) * (torch.randn(1000).sign() if signed else 1)
    # Each group of 256 has a 1 of its own, so that all lie within its seven decades.
    values = torch.cat([torch.cat([part, torch.ones(6)]) for part in values.split(250)])
    got = unpack_moment(pack_moment(values, signed=signed, generator=dice()), values.shape)
    assert ((got - values).abs() / values.abs()).max() < math.expm1(step) * 1.001
    assert got[255::256].tolist() == [1.0] * 4


@pytest.mark.parametrize("signed", [True, False])
def test_a_moment_rounded_by_chance_keeps_its_mean(signed):
    values = torch.tensor([1.0, 0.123, 3e-3, 4e-5, 3e-8 if signed else 4e-7, 0.0, 0.0, 0.0]).repeat(5000, 32)
    drawn = unpack_moment(pack_moment(values, signed=signed, generator=dice()), values.shape)
    means = drawn.view(-1, 8).mean(0)[:5] / values[0, :5]
    torch.testing.assert_close(means, torch.ones(5), atol=0.01, rtol=0)


def test_a_second_moment_never_becomes_zero_beside_others_and_zero_stays_zero():
    values = torch.tensor([1.0, 1e-30, 0.0])
    assert (unpack_moment(pack_moment(values, signed=False, generator=dice()), values.shape) > 0).all()
    assert not unpack_moment(pack_moment(torch.zeros(3), signed=False, generator=dice()), values.shape).any()
    assert not unpack_moment(pack_moment(torch.zeros(3), signed=True, generator=dice()), values.shape).any()


def test_a_running_mean_that_moves_by_less_than_a_code_still_arrives():
    """Rounded to the nearest code, the mean would stay at 1 for ever."""
    mean = torch.ones(256)
    for step in range(3000):
        packed = pack_moment(mean * 0.999 + 0.001 * 0.25, signed=False, generator=dice(step))
        mean = unpack_moment(packed, mean.shape)
    assert mean.mean() == pytest.approx(0.25 + 0.75 * 0.999**3000, rel=0.1)
