"""Picking a kernel, and varlen against transformers' sdpa."""

import importlib.util
import logging

import pytest
import torch
import torch.nn.functional as F

from harness.errors import UserError
from harness.model.attention import pick_attention, takes_cu_seqlens, use_varlen
from harness.model.loading import load
from harness.model.qwen3_vl import Attention

gpu = pytest.mark.gpu


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def some_gpu(monkeypatch):
    """Pretends a GPU of a given compute capability."""

    def pretend(capability=(9, 0), flash=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)

    return pretend


def test_auto_takes_varlen_for_16_bits_on_a_gpu(some_gpu, caplog):
    some_gpu()
    caplog.set_level(logging.INFO, "harness.model.attention")
    assert pick_attention(Attention.auto, torch.bfloat16) == "varlen"
    assert pick_attention(Attention.auto, torch.float16) == "varlen"
    assert pick_attention(Attention.auto, torch.float32) == "sdpa"
    assert caplog.messages == [
        "model.attention=auto picked varlen",
        "model.attention=auto picked varlen",
        "model.attention=auto picked sdpa: varlen takes weights of 16 bits, and these are torch.float32",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_varlen_on_the_cpu(no_gpu, dtype):
    assert pick_attention(Attention.auto, dtype) == "varlen"


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "picked"),
    [
        ((9, 0), True, torch.bfloat16, "flash_attention_4"),
        ((9, 0), False, torch.bfloat16, "varlen"),
        ((8, 9), True, torch.bfloat16, "varlen"),
        ((9, 0), True, torch.float32, "sdpa"),
    ],
)
def test_auto_takes_the_newest_kernels_where_they_are(some_gpu, monkeypatch, capability, installed, dtype, picked):
    some_gpu(capability=capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert pick_attention(Attention.auto, dtype) == picked


def test_auto_takes_sdpa_where_varlen_can_not_run(some_gpu):
    some_gpu(capability=(7, 5))
    assert pick_attention(Attention.auto, torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(
    ("machine", "dtype", "message"),
    [
        ({"capability": (7, 5)}, torch.bfloat16, r"needs a GPU of compute capability 8\.0 or later; use sdpa"),
        ({"flash": False}, torch.bfloat16, "needs a torch that was built with FlashAttention; use sdpa"),
        ({}, torch.float32, r"takes weights of 16 bits, and these are torch\.float32; set model\.dtype=bfloat16"),
    ],
)
def test_varlen_is_refused_where_it_can_not_run(some_gpu, machine, dtype, message):
    some_gpu(**machine)
    with pytest.raises(UserError, match=message):
        pick_attention(Attention.varlen, dtype)


def test_an_old_gpu_with_varlen_is_refused_before_weights_are_read(make_config, some_gpu, monkeypatch):
    some_gpu(capability=(7, 5))
    monkeypatch.setattr("harness.model.loading._from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=r"model\.attention=varlen: needs a GPU of compute capability"):
        load(make_config("model.attention=varlen").model)


def test_flash_attention_without_a_gpu_is_refused(no_gpu, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"model\.attention=flash_attention_2: needs a GPU"):
        pick_attention(Attention.flash_attention_2, torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "text", "vision"), [("float32", "sdpa", "sdpa"), ("bfloat16", "varlen", "flash_varlen")]
)
def test_loading_sets_both_towers_by_the_type_of_the_weights(make_config, some_gpu, dtype, text, vision):
    some_gpu()
    model = load(make_config(f"model.dtype={dtype}").model).model
    assert model.model.language_model.config._attn_implementation == text
    assert model.model.visual.config._attn_implementation == vision


def test_a_saved_model_does_not_ask_for_varlen(make_config, tmp_path):
    """The export loads where this package is not installed."""
    model = load(make_config().model).model
    use_varlen(model)
    model.save_pretrained(tmp_path)
    assert "varlen" not in (tmp_path / "config.json").read_text()


def test_who_is_told_where_samples_begin():
    told = {name for name in Attention.__members__ if takes_cu_seqlens(name)}
    assert told == {"varlen", "flash_attention_2", "flash_attention_3", "flash_attention_4"}


def test_a_decoder_layer_compiles_whole(make_config):
    model = load(make_config().model).model
    use_varlen(model)
    text = model.model.language_model
    hidden_BSD = torch.randn(1, 50, 96)
    starts = torch.tensor([0, 1, 20, 50], dtype=torch.int32)
    rotation = text.rotary_emb(hidden_BSD, torch.arange(50).expand(3, 1, -1))
    arguments = {"cu_seq_lens_q": starts, "max_length_q": 30, "position_embeddings": rotation}
    layer = text.layers[0]
    expected = layer(hidden_BSD, attention_mask=None, **arguments)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden_BSD, attention_mask=None, **arguments), expected)


def test_varlen_casts_what_a_float32_norm_made(make_config, mixed, padded, results):
    """Trained norms in float32 under autocast hand over queries and keys in float32, values in bfloat16."""
    model = load(make_config("model.dtype=bfloat16").model).model
    use_varlen(model)
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm.float()
        layer.self_attn.q_norm.requires_grad_(True)
    seen = []
    model.model.language_model.layers[0].self_attn.o_proj.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        results(model, padded(model, mixed))
    results(model, padded(model, mixed))
    assert seen == [torch.bfloat16] * 2


def test_varlen_refuses_dropout(make_config, mixed, padded, results):
    model = load(make_config().model).model.train()
    use_varlen(model)
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"varlen has no dropout, and the checkpoint's attention_dropout is 0\.1"):
        results(model, padded(model, mixed))


def generated(model, stock_inputs, samples):
    """Greedy answers to left-padded prompts, one of them with an image."""
    prompts = [stock_inputs([sample]) for sample in samples]
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def pad(key, value):
        rows = [F.pad(prompt[key][0], (width - prompt[key].shape[1], 0), value=value) for prompt in prompts]
        return torch.stack(rows).to(model.device)

    images = {
        key: torch.cat([prompt[key] for prompt in prompts if key in prompt]).to(model.device)
        for key in ("pixel_values", "image_grid_thw")
        if any(key in prompt for prompt in prompts)
    }
    return model.generate(
        input_ids=pad("input_ids", 486),
        attention_mask=pad("attention_mask", 0),
        mm_token_type_ids=pad("mm_token_type_ids", 0),
        **images,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
    )


@pytest.fixture
def prompts(make_samples):
    """Of several lengths, one with two images."""
    return [*make_samples("images"), make_samples("text")[0]]


def test_generation_under_varlen_is_that_under_sdpa(make_config, stock_inputs, prompts):
    model = load(make_config("model.attention=sdpa").model).model.eval()
    expected = generated(model, stock_inputs, prompts)
    use_varlen(model)
    assert torch.equal(generated(model, stock_inputs, prompts), expected)


def test_the_stock_forward_keeps_packed_samples_apart_under_varlen(make_config, make_samples, lay_out):
    model = load(make_config("model.attention=sdpa").model).model.eval()
    samples = make_samples("text")
    batch = lay_out(model, [samples], length=64)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    with torch.no_grad():
        expected = model(**inputs).logits
        joined = model(**{**inputs, "position_ids": batch.position_ids[1:]}).logits
        use_varlen(model)
        ours = model(**inputs).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (joined - expected).abs().max() > 0.1


@pytest.fixture
def on_gpu(make_config):
    """Loads the tiny model in bfloat16 with every weight trainable, on the GPU."""

    def make(attention):
        model = load(make_config("model.dtype=bfloat16", f"model.attention={attention}").model).model.cuda()
        return model.requires_grad_(True)

    return make


def distance(ours, theirs):
    """Of logits and of all gradients together, relative to their norm."""
    names = sorted(theirs[2])
    assert sorted(ours[2]) == names
    flat = [torch.cat([side[2][name].float().flatten() for name in names]) for side in (ours, theirs)]
    pairs = [(ours[0], theirs[0]), tuple(flat)]
    return [((a - b).norm() / b.norm()).item() for a, b in pairs]


@pytest.fixture
def exact_results(make_config, lay_out, results):
    """Results in float32 on the CPU, samples in rows of their own, from the bfloat16 weights."""

    def run(samples):
        model = load(make_config("model.dtype=bfloat16", "model.attention=sdpa").model).model.float()
        return results(model.requires_grad_(True), lay_out(model, [[sample] for sample in samples]))

    return run


@gpu
@pytest.mark.parametrize("content", ["text", "images", "video", "mixed"])
@pytest.mark.parametrize("attention", ["varlen", "flash_attention_2"])
def test_a_packed_batch_is_the_same_model_on_the_gpu(
    on_gpu, make_samples, lay_out, padded, results, exact_results, attention, content
):
    """As near to float32 as stock sdpa on padded rows is, packed, padded and one by one."""
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    samples = make_samples(content)
    exact = exact_results(samples)
    exact = (exact[0].cuda(), exact[1], {name: value.cuda() for name, value in exact[2].items()})
    sdpa, model = on_gpu("sdpa"), on_gpu(attention)
    batches = {
        "packed": lay_out(model, [samples], length=128),
        "two packs": lay_out(model, [samples[:1], samples[1:]], length=128),
        "padded": padded(model, samples),
        "padded left": padded(model, samples, side="left"),
    }
    batches = {name: batch.to("cuda") for name, batch in batches.items()}
    allowed = [2 * gap + 1e-2 for gap in distance(results(sdpa, batches["padded"]), exact)]
    for name, batch in batches.items():
        ours = results(model, batch)
        assert all(gap <= most for gap, most in zip(distance(ours, exact), allowed, strict=True)), name
        assert ours[1] == pytest.approx(exact[1], abs=0.05), name


@gpu
def test_generation_on_the_gpu_is_that_under_sdpa(on_gpu, stock_inputs, make_samples):
    """Of text: the two run the same kernels then."""
    answers = [generated(on_gpu(name).eval(), stock_inputs, make_samples("text")) for name in ("sdpa", "varlen")]
    assert torch.equal(*answers)


@gpu
def test_what_generation_sees_of_images_is_that_under_sdpa(on_gpu, stock_inputs, make_samples):
    """The ViT runs varlen then, so its last bits differ, and a tie between two tokens may fall differently."""
    inputs = {key: value.cuda() for key, value in stock_inputs(make_samples("mixed")).items() if key != "labels"}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        sdpa, varlen = (on_gpu(name).eval()(**inputs).logits[real].float() for name in ("sdpa", "varlen"))
    assert ((sdpa - varlen).norm() / sdpa.norm()).item() < 3e-2


@gpu
def test_the_text_side_does_not_wait_for_the_device(on_gpu, make_samples, lay_out, no_waits):
    """Every index comes with the batch; the vision tower reads its grids, so this is a batch of text."""
    from harness.model.forward import supervised_logits

    model = on_gpu("varlen")
    batch = lay_out(model, [make_samples("text")], length=128).to("cuda")
    supervised_logits(model, batch)
    with no_waits():
        supervised_logits(model, batch).sum().backward()
