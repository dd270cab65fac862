"""Packing of small integers, and weights of groups."""

import pytest
import torch

from harness.memory.quant.grouped import grouped, pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 16, 37, 960])
def test_unpacking_gives_back_what_was_packed(bits, count):
    values = torch.randint(2**bits, (count,), dtype=torch.uint8)
    packed = pack(values, bits)
    assert torch.equal(unpack(packed, bits, count).to(torch.uint8), values)
    assert packed.nbytes == packed_bytes(count, bits)


@pytest.mark.parametrize("along", ["inputs", "outputs"])
def test_a_weight_is_value_less_zero_times_scale_of_its_group(along):
    values = torch.randint(16, (8, 12))
    shape = (8, 1) if along == "inputs" else (1, 12)
    scale, zero = torch.rand(shape), torch.rand(shape)
    quantized = grouped(values, scale, zero, 4, (4, 24))
    weight = quantized.codec.weight(quantized.tensors, torch.float32, torch.empty(0))
    assert torch.equal(weight, ((values - zero) * scale).view(4, 24))
