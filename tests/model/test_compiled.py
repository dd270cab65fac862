"""Compiled blocks compute what plain ones do, equal blocks share a program, and nothing falls back to Python."""

from collections import Counter

import pytest
import torch
import torch._dynamo.testing

from harness import registry
from harness.config import RunConfig
from harness.model import compiled
from harness.model.forward import supervised_loss

# Dynamo looks at the gradient of whatever comes in.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def counter(monkeypatch):
    """Compiles with a backend that only traces, and counts what it is given."""
    backend = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: real(function, backend=backend, fullgraph=True, **options)
    )
    torch._dynamo.reset()
    yield backend
    torch._dynamo.reset()


def gradients(tuned, batches):
    tuned.model.zero_grad()
    losses = []
    for batch in batches:
        torch.manual_seed(0)
        loss = supervised_loss(tuned.base, batch)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses), {name: p.grad for name, p in tuned.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "policy", "hooked", "programs"),
    [
        # The decoder layers, the ViT's blocks, and the gradient of logits where the head is frozen.
        ("tuner=lora", "none", False, {3}),
        ("tuner=dora", "none", False, {3}),
        ("tuner=full", "none", False, {2}),
        ("tuner=lora", "selective", False, {3}),
        # torch 2.11 computes again with other guards than it computed with.
        ("tuner=lora", "full", False, {3, 6}),
        ("tuner=lora", "none", True, {3}),
        ("tuner=full", "full", True, {2}),
    ],
)
def test_equal_blocks_share_a_program_that_computes_the_same(
    make_tuned, make_config, make_batch, counter, choice, policy, hooked, programs
):
    # Compiled dropout draws other numbers.
    still = [] if choice == "tuner=full" else ["tuner.dropout=0"]
    tuned, batches = make_tuned(choice, *still), [make_batch(0, 1), make_batch(2, 3), make_batch(0, 1, 2, 3)]
    registry.build("memory", make_config(f"memory.checkpointing={policy}").memory, tuned.base)
    tuned.model.train()
    losses, grads = gradients(tuned, batches)
    grads = {name: grad.clone() for name, grad in grads.items()}
    compiled.compile_blocks(tuned.base, one_length=False, hooked=hooked)
    found, found_grads = gradients(tuned, batches)
    torch.testing.assert_close(found, losses)
    assert found_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found_grads[name], grad, msg=name)
    assert counter.frame_count in programs
    assert not compiled.graph_breaks()


def test_batches_of_one_length_have_programs_for_it_alone(make_tuned, make_batch, counter):
    """Nor does one tower make the other's general: the ViT's inputs differ in length, and in rank from the layers'."""
    tuned = make_tuned("tuner=lora", "tuner.dropout=0")
    tuned.model.train()
    compiled.compile_blocks(tuned.base, one_length=True)
    gradients(tuned, [make_batch(0, 1)])
    shapes = [
        tuple(node.meta["example_value"].shape)
        for graph in counter.graphs
        for node in graph.graph.nodes
        if node.op == "placeholder" and node.target.lower() == "l_hidden_"
    ]
    # The ViT's blocks come first.
    assert [[isinstance(side, int) for side in shape] for shape in shapes] == [[False, True], [True, True, True]]


@pytest.mark.slow
def test_models_of_the_same_settings_share_programs_and_others_do_not(make_tuned, make_batch, counter, monkeypatch):
    """Of others not even what is known of shapes: two batch sizes would give a program for any."""
    monkeypatch.setattr(compiled, "_own_blocks", {})
    counts = []
    for settings, rows in (("a", (0, 1)), ("a", (2, 3)), ("b", (0, 1, 2)), ("a", (4, 5)), ("b", (6, 7, 8))):
        tuned = make_tuned("tuner=lora", "tuner.dropout=0")
        tuned.model.train()
        known = compiled.compile_blocks(tuned.base, one_length=True, settings=settings)
        gradients(tuned, [make_batch(*rows)])
        counts.append((known, counter.frame_count))
    blocks = counts[0][1]
    # Of the head's gradient, the one program is for any length.
    assert counts == [(False, blocks), (True, blocks)] + [(False, 2 * blocks - 1)] + [(True, 2 * blocks - 1)] * 2


@pytest.mark.parametrize("hooked", [False, True])
def test_validation_runs_blocks_as_they_are(make_tuned, make_batch, monkeypatch, hooked):
    tuned = make_tuned("tuner=lora")
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_, **__: pytest.fail("compiled"))
    compiled.compile_blocks(tuned.base, one_length=True, hooked=hooked)
    tuned.model.eval()
    with torch.inference_mode():
        supervised_loss(tuned.base, make_batch(0))


@pytest.mark.parametrize(
    ("overrides", "device", "expected"),
    [
        (["data.packing=true", "data.packing_length=64"], GPU, True),
        (["data.packing=true", "data.packing_length=64"], CPU, False),
        ([], GPU, False),
        (["data.packing=true", "data.packing_length=64", "data.packing_fill=false"], GPU, False),
        (["trainer.compile=true"], CPU, True),
        (["data.packing=true", "data.packing_length=64", "trainer.compile=false"], GPU, False),
        (["data.packing=true", "data.packing_length=64", "memory/strategy=fsdp2", "trainer.devices=2"], GPU, True),
        (["data.packing=true", "data.packing_length=64", "memory/strategy=zero3", "trainer.devices=2"], GPU, True),
        (["memory/strategy=zero3", "trainer.devices=2", "trainer.compile=true"], CPU, True),
    ],
    ids=str,
)
def test_compiles_where_it_pays_or_as_asked(make_config, overrides, device, expected):
    config = make_config(*overrides)
    assert isinstance(config, RunConfig)
    assert compiled.will_compile(config, "qwen3_vl", device) is expected


@pytest.mark.parametrize(("count", "level"), [(0, None), (3, "INFO"), (36, "WARNING")])
def test_says_how_many_programs_there_are(monkeypatch, caplog, count, level):
    caplog.set_level("INFO")
    monkeypatch.setitem(torch._dynamo.utils.counters, "stats", Counter(unique_graphs=count))
    monkeypatch.setitem(torch._dynamo.utils.counters, "graph_break", Counter())
    compiled.report_programs()
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    assert all(f"compiled {count} programs" in record.message for record in caplog.records)


def test_says_why_it_does_not(make_config, caplog):
    caplog.set_level("INFO")
    assert not compiled.will_compile(make_config("data.packing=true", "data.packing_length=64"), "qwen3_vl_moe", GPU)
    assert "not compiled: the experts" in caplog.text
