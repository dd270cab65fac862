"""Shifted sparse attention: against the paper's own formulation, against full attention, and across layouts."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness import registry
from harness.errors import UserError
from harness.model.attention import use_varlen
from harness.model.shifted_sparse import Groups, use_shifted_sparse
from harness.model.varlen import varlen_attention

HEADS, KEYS, WIDTH = 8, 4, 16
GROUPS = [Groups(0.4), Groups(0.25, size=6)]


@pytest.fixture
def make_model(make_tuned):
    """Loads the tiny model with everything trainable, in training mode, on a kernel that knows groups."""

    def make(attention: str, groups: Groups | None, *overrides: str):
        model = make_tuned("tuner=full", "freeze=none", "model.attention=sdpa", *overrides).base
        if attention == "varlen":
            use_varlen(model)
        if groups is not None:
            use_shifted_sparse(model, groups)
        return model.train()

    return make


@pytest.fixture
def attend(make_model):
    """Calls the registered kernels as a layer does, on heads of our choice."""

    def run(attention, groups, tensors, starts):
        make_model(attention, groups)
        module = nn.Module()
        module.attention_groups, module.is_causal, module.num_key_value_groups = groups, True, HEADS // KEYS
        lengths = starts.diff()
        told = {"cu_seq_lens_q": starts, "max_length_q": int(lengths.max())}
        return ALL_ATTENTION_FUNCTIONS[f"{attention}_shifted"](module, *tensors, None, scaling=0.3, **told)[0]

    return run


def draw(length, dtype=torch.float64):
    """Queries, keys and values of one row, (1, heads, S, D)."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(1, n, length, WIDTH, generator=generator).to(dtype) for n in (HEADS, KEYS, KEYS)]


def papers(tensors, size):
    """Algorithm 1 of the paper on whole groups: half of the heads rolled by half a group, then causal groups."""
    q, k, v = (t.repeat_interleave(HEADS // t.shape[1], 1) for t in tensors)

    def roll(heads, by):
        plain, shifted = heads.chunk(2, dim=1)
        return torch.cat([plain, shifted.roll(by, dims=2)], dim=1)

    q, k, v = (roll(t, -size // 2).unflatten(2, (-1, size)) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    return roll(out.flatten(2, 3), size // 2).transpose(1, 2)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_is_the_papers_attention_but_for_the_group_that_wraps_around(attend, attention):
    """In the paper the first half group of the shifted heads sees the last tokens; here it sees itself alone."""
    tensors, starts = draw(32), torch.tensor([0, 32], dtype=torch.int32)
    ours, theirs = attend(attention, Groups(0.25), tensors, starts), papers(tensors, 8)
    torch.testing.assert_close(ours[:, :, : HEADS // 2], theirs[:, :, : HEADS // 2])
    torch.testing.assert_close(ours[:, 4:], theirs[:, 4:])
    assert (ours[:, :4, HEADS // 2 :] - theirs[:, :4, HEADS // 2 :]).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_a_token_sees_its_group_and_nothing_else(attend, attention):
    """Gradients by the values: two samples of 10 and 7 tokens, groups of 4; half of the heads has them 2 later."""
    bounds = ([0, 4, 8, 10, 14, 17], [0, 2, 6, 10, 12, 16, 17])
    tensors, starts = draw(17), torch.tensor([0, 10, 17], dtype=torch.int32)
    tensors[2].requires_grad_()
    out = attend(attention, Groups(0.25, size=4), tensors, starts)
    for half, edges in enumerate(bounds):
        heads = slice(half * HEADS // 2, (half + 1) * HEADS // 2)
        for token in range(17):
            (grad,) = torch.autograd.grad(out[0, token, heads].sum(), tensors[2], retain_graph=True)
            seen = {head: set(grad[0, head].any(-1).nonzero().flatten().tolist()) for head in range(KEYS)}
            begin = max(edge for edge in edges if edge <= token)
            mine = range(half * KEYS // 2, (half + 1) * KEYS // 2)
            assert seen == {head: set(range(begin, token + 1)) if head in mine else set() for head in range(KEYS)}


@pytest.mark.parametrize("groups", [Groups(1.0), Groups(0.25, size=4096)], ids=["ratio 1", "size"])
@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_a_group_that_covers_the_sample_is_full_attention(
    make_model, mixed, lay_out, padded, results, assert_same, attention, groups
):
    plain, model = make_model(attention, None), make_model(attention, groups)
    for make in (lambda: lay_out(model, [mixed], length=128), lambda: padded(model, mixed, side="left")):
        assert_same(results(model, make()), results(plain, make()))


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_layouts_and_kernels_are_the_same(make_model, mixed, lay_out, padded, results, assert_same, groups):
    """Packed with and without padding, padded left and right, on both kernels: logits, loss and every gradient."""
    sdpa, varlen = make_model("sdpa", groups), make_model("varlen", groups)
    expected = results(sdpa, padded(sdpa, mixed))
    full = results(make_model("sdpa", None), padded(sdpa, mixed))
    assert (expected[0] - full[0]).abs().max() > 0.1
    assert_same(results(sdpa, padded(sdpa, mixed, side="left")), expected)
    assert_same(results(sdpa, lay_out(sdpa, [mixed], length=128)), expected)
    assert_same(results(varlen, padded(varlen, mixed)), expected)
    assert_same(results(varlen, lay_out(varlen, [mixed[:1], mixed[1:]], length=128)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_checkpointing_changes_nothing(make_config, make_model, mixed, lay_out, results, assert_same, attention):
    plain, model = make_model(attention, Groups(0.25)), make_model(attention, Groups(0.25))
    registry.build("memory", make_config("memory.checkpointing=true").memory, model)
    assert_same(results(model, lay_out(model, [mixed])), results(plain, lay_out(plain, [mixed])))


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_evaluation_sees_everything(make_model, mixed, lay_out, results, attention):
    plain, model = make_model(attention, None).eval(), make_model(attention, Groups(0.25)).eval()
    batch = lay_out(model, [mixed])
    assert torch.equal(results(model, batch)[0], results(plain, batch)[0])


def test_generation_sees_everything(make_model, mixed, stock_inputs):
    inputs = stock_inputs(mixed[:1])
    del inputs["labels"]
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    made = [make_model("sdpa", groups).eval().generate(**inputs, **settings) for groups in (None, Groups(0.1))]
    assert torch.equal(*made)


def test_the_vision_tower_keeps_its_kernel(make_model):
    model = make_model("varlen", Groups(0.25))
    assert model.config.text_config._attn_implementation == "varlen_shifted"
    assert model.model.visual.config._attn_implementation == "flash_varlen"


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    groups=st.one_of(
        st.floats(0.01, 1).map(Groups), st.sampled_from([1 / 3, 0.1, 0.2, 0.7]).map(Groups),
        st.integers(2, 90).map(lambda size: Groups(0.25, size)),
    ),
    shifted=st.booleans(),
)  # fmt: skip
def test_groups_tile_each_sample(lengths, groups, shifted):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    starts = groups.starts(cu_seqlens, max(lengths), shifted)
    sizes = starts.diff()
    assert starts.dtype == torch.int32 and (sizes >= 0).all() and sizes.max() <= groups.longest(max(lengths))
    assert set(cu_seqlens.tolist()) <= set(starts.tolist())


def test_shifted_groups_begin_half_a_group_later():
    cu_seqlens = torch.tensor([0, 16, 19], dtype=torch.int32)
    groups = Groups(0.25)
    assert groups.starts(cu_seqlens, 16, False).unique().tolist() == [0, 4, 8, 12, 16, 17, 18, 19]
    assert groups.starts(cu_seqlens, 16, True).unique().tolist() == [0, 2, 6, 10, 14, 16, 17, 18, 19]


def test_another_kernel_is_refused(make_tuned):
    model = make_tuned("tuner=full", "model.attention=eager").base
    with pytest.raises(UserError, match=r"model\.attention=eager: .*'sdpa', 'varlen'"):
        use_shifted_sparse(model, Groups(0.25))


def test_an_odd_number_of_heads_is_refused():
    config = SimpleNamespace(_attn_implementation="sdpa", num_key_value_heads=3)
    model = SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace(config=config)))
    with pytest.raises(UserError, match="this checkpoint has 3 of keys; use tuner=lora"):
        use_shifted_sparse(model, Groups(0.25))


@pytest.mark.gpu
def test_the_kernel_takes_empty_groups():
    """Which stand where a sample has fewer groups than another: result and gradients are those without them."""
    tensors = [t[0].transpose(0, 1).contiguous().cuda() for t in draw(96, torch.bfloat16)]
    results = []
    for starts in ([0, 40, 64, 96], [0, 0, 40, 40, 40, 64, 64, 96, 96, 96]):
        leaves = [t.clone().requires_grad_() for t in tensors]
        cu_seqlens = torch.tensor(starts, dtype=torch.int32, device="cuda")
        out = varlen_attention(*leaves, cu_seqlens, 40, 0.3, True)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)
