"""What every optimiser has to keep, whatever its method; a new one is tested by being registered."""

import importlib.util
import io

import pytest
import torch

from harness import registry
from harness.model.component import component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.optim.group import parameter_groups
from harness.optim.schedule import build_schedule

registry.load()
OPTIONS = {
    "lion": ["optim.lr=3e-4"],
    "sgd": ["optim.lr=0.05", "optim.weight_decay=1e-3"],
    "lisa": ["optim.step_interval=2"],
    # torch iterates in bfloat16, for which most CPUs have no instructions.
    "muon": ["optim.ns_steps=1"],
    # The smallest matrices of the tiny model have 64 rows.
    **{name: ["optim.rank=8"] for name in ("galore", "q_galore", "apollo")},
}
"""What an optimiser needs to learn within a few steps, and quickly; others run at 2e-3."""
GPU_ONLY = {"paged_adamw_8bit"}
NEEDS_32_BITS = {"schedule_free"}

with_library = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
on_gpu = pytest.mark.gpu
OPTIMIZERS = [
    pytest.param(name, marks=[*([with_library] if "8bit" in name else []), *([on_gpu] if name in GPU_ONLY else [])])
    for name in registry.names("optim")
]
contract = pytest.mark.parametrize("name", OPTIMIZERS)
# Backward passes of a GPU add in any order: what runs only there has a test of its own, on drawn gradients.
bitwise = pytest.mark.parametrize("name", [item for item in OPTIMIZERS if item.values[0] not in GPU_ONLY])


@pytest.fixture
def start(make_config, make_tuned):
    """Builds the tiny model in full fine-tuning, its optimiser and its schedule as the training module does."""

    def begin(name, *overrides):
        choice = ["tuner=full", "freeze=none", f"optim={name}", *OPTIONS.get(name, []), *overrides]
        config, tuned = make_config(*choice), make_tuned(*choice)
        device = "cuda" if name in GPU_ONLY else "cpu"
        tuned.model.train().to(device)
        groups = parameter_groups(tuned.model, config.optim, config.optim.lr or 2e-3, tuned.lr_scales)
        optimizer = registry.build("optim", config.optim, groups)
        return tuned, optimizer, build_schedule(optimizer, config.optim.schedule, 100)

    return begin


def train(run, batch, steps, leave_out=()):
    """Takes steps as the training module does; parameters that are left out lose their gradients first."""
    tuned, optimizer, schedule = run
    batch = batch.to(next(tuned.model.parameters()).device)
    named, losses = dict(tuned.model.named_parameters()), []
    for _ in range(steps):
        loss = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
        optimizer.zero_grad()
        loss.backward()
        for name in leave_out:
            named[name].grad = None
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def weights(run):
    return {name: parameter.detach().clone() for name, parameter in run[0].model.named_parameters()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    different = [name for name, value in left.items() if not torch.equal(value, right[name])]
    assert different == []


@bitwise
def test_is_deterministic_bit_by_bit(start, make_batch, name):
    first, second = start(name), start(name)
    assert train(first, make_batch(0, 1), 2) == train(second, make_batch(0, 1), 2)
    assert_equal(weights(first), weights(second))


@bitwise
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_survives_a_checkpoint_bit_by_bit(start, make_batch, name, dtype):
    """As Lightning does it: weights, optimiser and schedule, read with weights_only into a run that just began."""
    if name in NEEDS_32_BITS and dtype == "bfloat16":
        pytest.skip("refuses it")
    batch, whole, resumed = make_batch(0, 1), *(start(name, f"tuner.dtype={dtype}") for _ in range(2))
    train(whole, batch, 3)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in (whole[0].model, *whole[1:])], buffer)
    expected = train(whole, batch, 2)
    buffer.seek(0)
    for part, state in zip((resumed[0].model, *resumed[1:]), torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(resumed, batch, 2) == expected
    assert_equal(weights(resumed), weights(whole))


@contract
def test_learns(start, make_batch, name):
    losses = train(start(name), make_batch(0, 1, 2, 3), 10)
    assert losses[-1] < 0.6 * losses[0]


@contract
def test_a_parameter_without_gradient_is_neither_moved_nor_decayed(start, make_batch, name):
    run = start(name)
    left_out = ["model.language_model.layers.1.mlp.up_proj.weight", "model.language_model.norm.weight"]
    left_out += ["model.language_model.embed_tokens.weight", "model.visual.blocks.0.attn.qkv.bias"]
    before = weights(run)
    train(run, make_batch(0, 1), 2, left_out)
    after = weights(run)
    assert all(torch.equal(after[name], before[name]) for name in left_out)
    assert sum(not torch.equal(after[name], before[name]) for name in before) > len(before) / 3


@contract
def test_rates_and_decay_of_each_parameter_are_those_of_its_group(start, name):
    rates = {"llm": 3e-3, "aligner": 2e-3, "vit": 1e-3}
    tuned, optimizer, _ = start(name, "optim.lr=3e-3", "optim.aligner_lr=2e-3", "optim.vit_lr=1e-3")
    held = [(id(parameter), group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(dict(held)) == len(list(tuned.model.parameters()))
    for full_name, parameter in tuned.model.named_parameters():
        group = dict(held)[id(parameter)]
        assert group["initial_lr"] == rates[component_of(full_name).value]
        assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
        assert group["param_names"][next(i for i, p in enumerate(group["params"]) if p is parameter)] == full_name
    # Or fp16's norm would be measured and clipped on scaled gradients.
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def held(value):
    """Yields the tensors in a state; counts of steps are left out, and what is there for all is there once."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from held(item) if key != "step" else ()
    elif isinstance(value, torch.Tensor):
        yield value


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        *((item.values[0], []) for item in OPTIMIZERS if "8bit" not in item.values[0]),
        pytest.param("adamw_8bit", [], marks=with_library),
        ("adamw", ["tuner.dtype=bfloat16"]),
        ("adafactor", ["optim.beta1=0.9"]),
        ("lisa", ["optim.layer_state=keep"]),
        ("sgd", ["optim.momentum=0"]),
        ("galore", ["tuner.dtype=bfloat16"]),
        ("galore", ["optim.proj_type=full"]),
        ("galore", ["optim.proj_type=reverse_std", "optim.with_embedding=true"]),
        ("q_galore", ["optim.quantize_state=false", "optim.proj_quant=true"]),
        ("apollo", ["optim.rank=1", "optim.scale_type=tensor"]),
    ],
)
def test_bytes_of_state_and_gradients_are_those_foretold(start, make_config, make_batch, name, choice):
    run = start(name, *choice)
    trained = [
        (n, p) for group in run[1].param_groups for n, p in zip(group["param_names"], group["params"], strict=True)
    ]
    config = make_config("tuner=full", "freeze=none", f"optim={name}", *OPTIONS.get(name, []), *choice).optim
    foretold = config.footprint(trained)
    # LISA's layers have all had their turn where their state is kept.
    train(run, make_batch(0, 1), 23 if "optim.layer_state=keep" in choice else 1)
    optimizers = getattr(run[1], "optimizers", [run[1]])
    states = {t.data_ptr(): t.nbytes for optimizer in optimizers for t in held(dict(optimizer.state))}
    assert sum(states.values()) == pytest.approx(foretold.state, rel=0.02, abs=4096)
    assert foretold.gradients == sum(p.grad.nbytes for _, p in trained if p.grad is not None)
