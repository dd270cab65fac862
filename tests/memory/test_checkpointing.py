"""Policies change what is kept, not what comes out, and reach the layers that they are meant for."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

from harness import registry
from harness.errors import UserError
from harness.memory.checkpointing import keeps, set_policy
from harness.model.block import call, run_block
from harness.model.forward import supervised_loss

EVERYTHING = ("tuner=full", "freeze=none")
SAVES, REPEATS = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE


def set_memory(tuned, make_config, *overrides):
    registry.build("memory", make_config(*overrides).memory, tuned.base)
    tuned.model.train()
    return tuned


def gradients(tuned, batch):
    torch.manual_seed(0)
    tuned.model.train()
    supervised_loss(tuned.base, batch).backward()
    return {name: p.grad for name, p in tuned.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "policy",
    [
        ["memory.checkpointing=selective"],
        ["memory.checkpointing=full", "memory.checkpointed_layers=2"],
        ["memory.checkpointing=none", "memory.vit_checkpointing=selective"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("choice", [("tuner=lora", "freeze=none"), EVERYTHING], ids=" ".join)
def test_gradients_are_the_same_under_every_policy(make_tuned, make_config, make_batch, choice, policy):
    plain, changed = make_tuned(*choice), make_tuned(*choice)
    changed.model.load_state_dict(plain.model.state_dict())
    set_memory(changed, make_config, *policy)
    expected, got = (gradients(tuned, make_batch(0)) for tuned in (plain, changed))
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name], msg=name)


@pytest.mark.parametrize(("number", "calls"), [(1, 1), (3, 3)])
def test_the_first_layers_are_checkpointed(make_tuned, make_config, make_batch, monkeypatch, number, calls):
    seen = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", lambda *a, **k: seen.append(a[0]) or original(*a, **k))
    tuned = make_tuned()
    set_memory(tuned, make_config, "memory.checkpointing=full", f"memory.checkpointed_layers={number}")
    supervised_loss(tuned.base, make_batch(0))
    layers = tuned.base.model.language_model.layers
    assert [partial.args[0] for partial in seen] == list(layers[:number]) and len(seen) == calls


def test_a_frozen_vit_follows_none(make_tuned, make_config):
    tuned = set_memory(make_tuned(), make_config, "memory.checkpointing=full")
    assert not any(hasattr(block, "recompute") for block in tuned.base.model.visual.blocks)
    assert all(hasattr(layer, "recompute") for layer in tuned.base.model.language_model.layers)


def test_validation_is_not_checkpointed(make_tuned, make_config, make_batch, monkeypatch):
    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", lambda *_, **__: pytest.fail("computed again"))
    tuned = set_memory(make_tuned(), make_config, "memory.checkpointing=full")
    tuned.model.eval()
    supervised_loss(tuned.base, make_batch(0))


@pytest.mark.parametrize(
    ("operator", "shapes", "policy"),
    [
        ("harness::varlen_attention", [], SAVES),
        ("aten::_scaled_dot_product_flash_attention", [], SAVES),
        ("aten::mm", [(8, 2560), (2560, 4096)], SAVES),  # q of 4B
        ("aten::mm", [(8, 2560), (2560, 6144)], SAVES),  # q, k, v joined
        ("aten::_scaled_mm", [(8, 9728), (9728, 2560)], SAVES),  # down
        ("aten::addmm", [(2560,), (8, 2560), (2560, 2560)], SAVES),
        ("aten::mm", [(8, 2048), (2048, 6144)], REPEATS),  # gate of 2B, the narrowest
        ("aten::mm", [(8, 16), (16, 2560)], REPEATS),  # B of a LoRA
        ("aten::mul", [], REPEATS),
    ],
)
def test_selective_keeps_attention_and_products_that_do_not_widen(operator, shapes, policy):
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    overload = getattr(packet, packet.overloads()[0])
    assert keeps(None, overload, *(torch.empty(shape, device="meta") for shape in shapes)) is policy


def test_selective_runs_neither_attention_nor_narrow_products_again(make_tuned, make_config, make_batch):
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if keeps(None, function, *args) is SAVES:
                self.products += 1
            return function(*args, **(kwargs or {}))

    counts = {}
    for policy in ("none", "selective", "full"):
        tuned = set_memory(make_tuned("tuner.dropout=0"), make_config, f"memory.checkpointing={policy}")
        loss = supervised_loss(tuned.base, make_batch(0))
        with Count() as count:
            loss.backward()
        counts[policy] = count.products
    assert counts["none"] == counts["selective"] < counts["full"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["memory.checkpointing=some"],
            r"memory\.checkpointing=some: known: none, selective, full, auto; true is full",
        ),
        (["memory.vit_checkpointing=auto"], r"memory\.vit_checkpointing=auto: known: none, selective, full; true"),
        (["memory.checkpointed_layers=2"], r"memory\.checkpointed_layers=2: has no effect with .*checkpointing=none"),
        (["memory.offload_activations=true"], r"memory\.offload_activations=True: has no effect"),
        (["memory.checkpointing=full", "memory.checkpointed_layers=0"], r"checkpointed_layers=0: must be 1 or more"),
        (["memory=auto", "memory.checkpointed_layers=2"], r"checkpointed_layers=2: is chosen by .*checkpointing=auto"),
        (["memory.budget_gib=0"], r"memory\.budget_gib=0\.0: must be more than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_has_no_effect_or_no_meaning_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["memory.checkpointing=full", "memory.checkpointed_layers=99"],
            r"checkpointed_layers=99: the LLM has \d+ lay",
        ),
        (["memory.vit_checkpointing=full"], r"vit_checkpointing=full: has no effect: the ViT is frozen"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(make_tuned, make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        set_memory(make_tuned(), make_config, *overrides)


@pytest.mark.parametrize(("value", "name"), [("true", "full"), ("false", "none"), ("selective", "selective")])
def test_truth_values_go_on_naming_policies(make_config, value, name):
    config = make_config(f"memory.checkpointing={value}", f"memory.vit_checkpointing={value}").memory
    assert config.checkpointing == config.vit_checkpointing == name


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(64, 64, bias=False), nn.Linear(64, 256, bias=False)
        self.back = nn.Linear(256, 64, bias=False)

    def forward(self, x, scale=1.0):
        return x + self.back(nn.functional.silu(self.wide(self.narrow(nn.functional.silu(x)) * scale)))


def saved(layer, x):
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):
        call(layer, layer, x)
    return tensors


@pytest.mark.slow
def test_a_layer_that_is_compiled_with_its_policy_inside_keeps_as_little():
    kept = {}
    for policy in ("none", "selective", "full"):
        torch.manual_seed(0)
        layer = Layer()
        set_policy(layer, policy)
        layer.run_block = torch.compile(run_block, backend="aot_eager", fullgraph=True)
        x = torch.randn(32, 64, requires_grad=True)
        call(layer, layer, x).sum().backward()
        own = {p.data_ptr() for p in layer.parameters()}
        kept[policy] = sum(t.numel() for t in saved(layer, x) if t.data_ptr() not in own)
        torch._dynamo.reset()
    assert kept["full"] == 32 * 64 and kept["selective"] == 2 * 32 * 64 and kept["none"] > kept["selective"]
