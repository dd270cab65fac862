"""Float8 base: as near to bfloat16 as its rounding allows, trained through, and refused where it can not be."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from harness import registry
from harness.errors import UserError
from harness.memory import fp8_replace
from harness.memory.fp8_linear import LARGEST, Fp8Linear, fp8_linear, quantize, quantize_rows
from harness.memory.precision import checked_precision
from harness.model.forward import supervised_loss
from harness.trainer.flops import survey

BF16 = "model.dtype=bfloat16"


@pytest.fixture
def emulated(monkeypatch):
    """Lets the CPU stand in for a GPU: the same rounded factors, multiplied in float32."""
    monkeypatch.setattr(fp8_replace, "check_device", lambda device: None)


@pytest.fixture
def make_fp8(make_config, make_tuned, emulated):
    def make(*overrides):
        tuned = make_tuned(BF16, *overrides)
        registry.build("memory", make_config("memory=fp8_base", *overrides).memory, tuned.base)
        return tuned

    return make


def test_a_row_is_rounded_to_one_part_in_sixteen_of_its_values_or_less():
    """e4m3 has three bits of mantissa: at most 2^-4 of a normal number, and half the smallest step, 2^-10, below."""
    x_TD = torch.randn(64, 128) * torch.logspace(-20, 20, 64)[:, None]
    q_TD, scale_T1 = quantize_rows(x_TD)
    assert q_TD.float().abs().amax(-1).eq(LARGEST).all()
    error = (q_TD.float() * scale_T1 - x_TD).abs()
    assert (error <= torch.maximum(x_TD.abs() / 16, scale_T1 * 2**-10) * 1.001).all()


def test_rows_of_zeros_stay_zero():
    q_TD, scale_T1 = quantize_rows(torch.zeros(2, 16))
    assert not (q_TD.float() * scale_T1).any()


@pytest.mark.parametrize("keep", [True, False])
def test_product_and_gradient_are_those_of_the_rounded_factors(keep):
    x_TD = torch.randn(2, 5, 32, requires_grad=True)
    weight = quantize(torch.randn(48, 32), keep)
    y = fp8_linear(x_TD, weight, torch.float32)
    grad = torch.randn_like(y)
    y.backward(grad)
    q_TD, scale_T1 = quantize_rows(x_TD.detach())
    exact_ED = weight.dequantized(torch.float32)
    torch.testing.assert_close(y, (q_TD.float() * scale_T1) @ exact_ED.T)
    expected = grad @ exact_ED
    assert (x_TD.grad - expected).norm() < 0.04 * expected.norm()


def test_error_against_the_product_in_float32_is_within_the_types_bound():
    """Each factor is off by 2^-4 / sqrt(3) of itself in the mean at worst, so the sum by sqrt(2) of that."""
    x_TD, w_ED = torch.randn(256, 512), torch.randn(128, 512)
    exact = x_TD @ w_ED.T
    error = fp8_linear(x_TD, quantize(w_ED, True), torch.float32) - exact
    assert 0.01 < error.norm() / exact.norm() < 2**-4 / 3**0.5 * 2**0.5


def test_follows_the_loss_of_bfloat16(make_tuned, make_fp8, make_batch):
    losses = [train(make("tuner.dropout=0"), make_batch(0), 20) for make in (partial(make_tuned, BF16), make_fp8)]
    exact, got = torch.tensor(losses)
    assert exact[-1] < 0.5 * exact[0]
    assert ((got - exact).abs() < 0.06 * exact[0]).all()


@pytest.mark.parametrize("tuner", ["dora", "boft", "adapter"])
def test_other_adapters_train_alone_too(make_tuned, make_fp8, make_batch, tuner):
    plain, rounded = (train(make(f"tuner={tuner}"), make_batch(0), 2) for make in (partial(make_tuned, BF16), make_fp8))
    assert abs(rounded[0] - plain[0]) < 0.05 * plain[0] and rounded[1] < rounded[0]


def train(tuned, batch, steps):
    """Trains on answers that the tiny model does not know yet."""
    batch = dataclasses.replace(batch, targets=batch.targets.flip(0) + 1)
    torch.manual_seed(0)
    tuned.model.train()
    trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    frozen = {name: p.clone() for name, p in tuned.model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = supervised_loss(tuned.base, batch) / batch.num_supervised
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    for name, p in tuned.model.named_parameters():
        assert name not in frozen or torch.equal(p.view(torch.uint8), frozen[name].view(torch.uint8)), name
    return losses


def test_replaces_every_frozen_linear_layer_of_the_llm_and_nothing_else(make_fp8, make_tuned):
    tuned = make_fp8("freeze=none")
    before = {name for name, m in make_tuned(BF16, "freeze=none").model.named_modules() if type(m) is nn.Linear}
    after = {name for name, m in tuned.model.named_modules() if isinstance(m, Fp8Linear)}
    expected = {name for name in before if "language_model.layers." in name and name.endswith("_proj.base_layer")}
    assert after == expected and len(after) == 7 * len(tuned.base.model.language_model.layers)


def test_counts_parameters_once_and_precision_looks_past_storage(make_fp8, make_tuned, make_config):
    tuned, plain = make_fp8(), make_tuned(BF16)
    count = [sum(p.numel() for p in each.model.parameters()) for each in (tuned, plain)]
    assert count[0] == count[1]
    config = make_config("memory=fp8_base", "trainer.accelerator=cpu")
    assert checked_precision(config.memory, tuned.base, config.trainer) == "bf16"


def test_scales_and_transposes_move_with_the_model():
    layer = Fp8Linear(quantize(torch.randn(16, 32), True), None, torch.bfloat16)
    moved = layer.to("meta")
    assert {moved.weight_q.device.type, moved.weight_scale.device.type, moved.weight_t.device.type} == {"meta"}


def test_bias_is_added():
    bias = nn.Parameter(torch.randn(16), requires_grad=False)
    plain, biased = (Fp8Linear(quantize(torch.ones(16, 32), True), b, torch.float32) for b in (None, bias))
    x = torch.randn(3, 32)
    torch.testing.assert_close(biased(x), plain(x) + bias)


def test_the_adapter_that_is_exported_is_the_one_trained(make_fp8, make_config, load_model, make_batch, tmp_path):
    from peft import PeftModel
    from safetensors.torch import load_file

    tuned = make_fp8()
    train(tuned, make_batch(0), 1)
    folder = tuned.export(tmp_path)
    own = set(load_file(folder / "adapter_model.safetensors"))
    assert own and all(".lora_" in name for name in own)
    loaded = PeftModel.from_pretrained(load_model(make_config(BF16).model).model, folder)
    trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    for name, parameter in loaded.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(parameter.float(), trained[name].float(), msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["memory.precision=fp32"], r"memory\.precision=fp32: float8 products give bfloat16"),
        (["tuner=full"], r"memory=fp8_base: tuner=full exports the whole model"),
        (["tuner=llamapro"], r"memory=fp8_base: tuner=llamapro exports the whole model"),
        (["tuner=longlora"], r"memory=fp8_base: tuner=longlora exports the whole model"),
        (["tuner.init=loftq"], r"memory=fp8_base: tuner=lora exports the whole model"),
    ],
)
def test_what_does_not_fit_is_refused_on_the_command_line(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("memory=fp8_base", *overrides)


def test_other_weights_than_bfloat16_are_refused(make_config, make_tuned, emulated):
    with pytest.raises(UserError, match=r"memory=fp8_base: needs weights in bfloat16, and .* is torch\.float32"):
        registry.build("memory", make_config("memory=fp8_base").memory, make_tuned().base)


def test_a_model_without_frozen_layers_is_refused(make_config, make_tuned, emulated):
    base = make_tuned("tuner=full", "freeze=vit_aligner", BF16).base
    with pytest.raises(UserError, match=r"memory=fp8_base: no linear layer of the LLM is frozen"):
        registry.build("memory", make_config("memory=fp8_base").memory, base)


def test_a_cpu_is_refused(make_config, make_tuned):
    with pytest.raises(UserError, match=r"memory=fp8_base: needs a GPU of compute capability 8\.9 or later .* a cpu"):
        registry.build("memory", make_config("memory=fp8_base").memory, make_tuned(BF16).base)


def test_an_older_gpu_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(UserError, match=r"A100 has 8\.0"):
        fp8_replace.check_device(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_compiles_without_a_break(keep):
    layer = Fp8Linear(quantize(torch.randn(48, 32), keep), None, torch.bfloat16)
    x = torch.randn(7, 32, dtype=torch.bfloat16, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (expected,), (got,) = (torch.autograd.grad(run(x).float().square().sum(), x) for run in (layer, compiled))
    torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("tokens", [1, 17, 512])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gpus_product_is_the_emulations(keep, tokens, compiled):
    weight = quantize(torch.randn(768, 256), keep)
    on_gpu = type(weight)(*(None if t is None else t.cuda() for t in weight))
    x_TD, grad = torch.randn(tokens, 256).bfloat16(), torch.randn(tokens, 768).bfloat16()
    run = torch.compile(fp8_linear, fullgraph=True) if compiled else fp8_linear
    results = []
    for x, weights in ((x_TD, weight), (x_TD.cuda(), on_gpu)):
        x = x.clone().requires_grad_()
        y = (run if x.is_cuda else fp8_linear)(x, weights)
        y.backward(grad.to(x.device))
        results.append((y.detach().cpu().float(), x.grad.cpu().float()))
    for expected, got in zip(*results, strict=True):
        assert (got - expected).norm() < 0.01 * expected.norm()


def test_products_cost_as_many_flops_as_in_bfloat16(make_fp8, make_tuned, make_batch):
    plain, rounded = (survey(tuned.base).of(make_batch(0, 1)) for tuned in (make_tuned(BF16), make_fp8()))
    assert rounded == plain
