"""Varlen attention against sdpa, one sample at a time: the result and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from harness.model.varlen import _backward, _forward, varlen_attention

gpu = pytest.mark.gpu
LENGTHS = (1, 7, 64, 130, 3)


def draw(dtype, device="cpu", heads=4, groups=2, width=16):
    """Queries, keys, values, and where samples begin."""
    tokens = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, heads, width), (tokens, groups, width), (tokens, groups, width)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
    return [tensor.requires_grad_() for tensor in tensors], starts


def sample_by_sample(q_THD, k_TGD, v_TGD, scale, causal):
    """The same by sdpa, one sample at a time."""
    parts = []
    for q, k, v in zip(*(tensor.split(LENGTHS) for tensor in (q_THD, k_TGD, v_TGD)), strict=True):
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def gaps(ours, theirs, tensors):
    """Largest difference of the result and of each gradient, relative to the largest value."""
    grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(theirs)
    pairs = [(ours, theirs)]
    pairs += zip(torch.autograd.grad(ours, tensors, grad), torch.autograd.grad(theirs, tensors, grad), strict=True)
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_varlen_on_the_cpu_is_sdpa_sample_by_sample(causal, groups):
    tensors, starts = draw(torch.float64, groups=groups)
    ours = varlen_attention(*tensors, starts, max(LENGTHS), 0.3, causal)
    assert max(gaps(ours, sample_by_sample(*tensors, 0.3, causal), tensors)) < 1e-12


def test_what_is_not_compiled_does_on_the_cpu_what_the_operators_do():
    tensors, starts = draw(torch.float64)
    through_operator = _forward(*tensors, starts, torch.tensor(max(LENGTHS)), 0.3, True)[0]
    ours = varlen_attention(*tensors, starts, max(LENGTHS), 0.3, True)
    assert "Attention" in str(ours.grad_fn) and max(gaps(ours, through_operator, tensors)) == 0


def check_operators(device, dtype):
    """Schemas, shapes for the compiler and autograd, by torch's own checks."""
    tensors, starts = draw(dtype, device)
    rest = (starts, torch.tensor(max(LENGTHS)), 0.3, True)
    torch.library.opcheck(_forward, (*tensors, *rest), atol=1e-2, rtol=1e-2)
    plain = [tensor.detach() for tensor in tensors]
    out, lse = _forward(*plain, *rest)
    torch.library.opcheck(_backward, (torch.ones_like(out), *plain, out, lse, *rest), atol=1e-2, rtol=1e-2)


def test_the_operators_pass_torchs_checks():
    check_operators("cpu", torch.float32)


@gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "groups", "width"), [(8, 8, 64), (8, 2, 128), (16, 16, 72), (4, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_is_sdpa_sample_by_sample(causal, heads, groups, width, dtype):
    """Against float64 on the same rounded inputs, to some units in the last place of bfloat16."""
    scale = width**-0.5
    tensors, starts = draw(dtype, "cuda", heads, groups, width)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    ours = varlen_attention(*tensors, starts, max(LENGTHS), scale, causal)
    theirs = sample_by_sample(*exact, scale, causal)
    grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to("cuda", dtype)
    got = [ours, *torch.autograd.grad(ours, tensors, grad)]
    expected = [theirs, *torch.autograd.grad(theirs, exact, grad.double())]
    assert got[0].dtype == dtype
    for a, b in zip(got, expected, strict=True):
        assert ((a.double() - b).abs().max() / b.abs().max()).item() < 3e-2


@gpu
def test_the_operators_pass_torchs_checks_on_the_gpu():
    check_operators("cuda", torch.bfloat16)


@gpu
@pytest.mark.filterwarnings("ignore")
def test_the_kernel_compiles_whole():
    """The compiler warns of its own parts as it is imported, which says nothing of ours."""
    tensors, starts = draw(torch.bfloat16, "cuda")
    eager = varlen_attention(*tensors, starts, max(LENGTHS), 0.3, True)
    compiled = torch.compile(varlen_attention, fullgraph=True)(*tensors, starts, max(LENGTHS), 0.3, True)
    assert max(gaps(compiled, eager, tensors)) < 1e-2
