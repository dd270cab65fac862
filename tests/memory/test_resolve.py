"""memory=auto takes the fastest plan that fits, and says what it chose and how far off it was."""

import dataclasses
import logging
from functools import partial

import numpy as np
import pytest
import torch

from harness import registry
from harness.data.extent import Extent
from harness.errors import UserError
from harness.memory import fp8_replace, kept, resolve
from harness.memory.kept import Kept
from harness.memory.prediction import GIB, SPARE, SPARE_GIB, Fixed, Plan, plans, predict

LAYERS = [Kept(200 * GIB, 40 * GIB, 5 * GIB)] * 4
CONSTANT = Fixed(9 * GIB, 2 * GIB, 4 * GIB, 1 * GIB, 1 * GIB, 3 * GIB)
EXTENT = Extent(4096, 1024, 1024)


def peak(**plan):
    return predict(Plan(**plan), CONSTANT, LAYERS, []).peak_gib


def test_peak_is_what_is_kept_and_the_greater_of_head_and_backward_pass():
    assert peak() == 9 + 2 + 4 + 1 + 4 * 200 + 3
    # One layer runs again while the inputs of all are held.
    assert peak(checkpointing="full") == 16 + 4 * 5 + 200 + 3
    assert peak(checkpointing="selective") == 16 + 4 * 40 + 200 + 3
    # Of two checkpointed layers the turn comes when the others have freed what they kept.
    assert peak(checkpointing="full", checkpointed_layers=2) == 16 + 2 * 5 + 2 * 200 + 3
    assert peak(checkpointing="full", offload_activations=True) == 16 + 200 + 3
    seen = predict(Plan(), CONSTANT, LAYERS, [Kept(7 * GIB, 2 * GIB, GIB)] * 2).peak_gib
    assert seen == peak() + 14


def test_plans_go_from_the_fastest_to_the_least_memory():
    found = plans(4, vit=False)
    assert found[0] == Plan() and found[-1].offload_activations and len(found) == 1 + 2 * 4 + 1
    assert {plan.vit_checkpointing for plan in found} == {"none"}
    assert {plan.vit_checkpointing for plan in plans(4, vit=True)} == {"none", "full"}


def test_the_fastest_plan_that_fits_is_chosen():
    predictions = [predict(plan, CONSTANT, LAYERS, []) for plan in plans(4, vit=False)]
    assert resolve.choose(predictions, 2000).plan == Plan()
    room = (peak(checkpointing="full", checkpointed_layers=3) + 0.1) * SPARE + SPARE_GIB
    chosen = resolve.choose(predictions, room)
    faster = predictions[: predictions.index(chosen)]
    assert chosen.needed_gib <= room and all(other.needed_gib > room for other in faster)


def test_no_room_is_refused_with_what_to_do():
    predictions = [predict(plan, CONSTANT, LAYERS, []) for plan in plans(4, vit=False)]
    with pytest.raises(UserError, match=r"even memory\.checkpointing=full .* needs .* lower trainer\.batch_size"):
        resolve.choose(predictions, 20)


def on_cpu(function):
    return lambda base, extent, device, *rest: function(base, extent, torch.device("cpu"), *rest)


@pytest.fixture
def resolved(make_config, make_tuned, monkeypatch):
    """Resolves as on a GPU with so much room."""

    def run(room_gib, *overrides, extent=EXTENT):
        monkeypatch.setattr(resolve, "room_gib", lambda config, device: room_gib)
        # A torch without CUDA can not pretend to have it.
        for name in ("kept_by_layers", "kept_by_blocks"):
            monkeypatch.setattr(resolve, name, on_cpu(getattr(kept, name)))
        config = make_config("memory=auto", "trainer.accelerator=cpu", *overrides)
        return resolve.resolve(config, make_tuned(*overrides), extent, torch.device("cuda"))

    return run


def test_a_large_card_keeps_all_and_a_small_one_checkpoints(resolved, caplog):
    caplog.set_level(logging.INFO)
    large = resolved(100)
    assert large.config.checkpointing == "none" and "micro-batches of up to 4,096 tokens" in caplog.text
    need = large.prediction.peak_gib
    small = resolved((need - 0.01) * SPARE + SPARE_GIB)
    assert small.config.checkpointing != "none" and small.prediction.peak_gib < need
    assert small.config.vit_checkpointing is None, "the ViT is frozen"


def test_a_vit_that_trains_is_planned_too(resolved):
    predicted = resolved(100, "tuner=full", "freeze=none").prediction
    frozen = resolved(100, "tuner=full").prediction
    assert predicted.parts["activations"] > frozen.parts["activations"]


def test_parts_are_those_of_the_model(resolved, make_tuned):
    parts = resolved(100, "tuner=full", "optim=sgd").prediction.parts
    model = make_tuned("tuner=full").model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parts["gradients"] == parts["optimizer"] == 4 * trained / GIB
    assert parts["weights"] == sum(p.nbytes for p in model.parameters()) / GIB


def test_the_float8_bases_weights_are_counted_as_they_will_be(resolved, make_tuned):
    choice = ["model.dtype=bfloat16", "memory=fp8_base", "memory.checkpointing=auto"]
    kept, single = (
        resolved(100, *choice, f"memory.keep_transpose={keep}").prediction.parts["weights"] for keep in (True, False)
    )
    layers = fp8_replace.frozen_layers(make_tuned("model.dtype=bfloat16").base)
    assert kept - single == pytest.approx(sum(layer.weight.numel() for _, layer in layers) / GIB)


def test_the_cpu_keeps_all_and_says_so(make_config, make_tuned, caplog):
    caplog.set_level(logging.INFO)
    found = resolve.resolve(make_config("memory=auto"), make_tuned(), EXTENT, torch.device("cpu"))
    assert found.config.checkpointing == "none" and found.outcome(None) is None
    assert "memory.checkpointing=auto: none, for memory is not planned on the cpu" in caplog.text


def test_a_stream_without_a_bound_is_refused(resolved):
    with pytest.raises(UserError, match=r"checkpointing=auto: .* set data\.max_length, or a policy"):
        resolved(100, extent=None)


def test_the_outcome_has_the_predictions_error(resolved):
    found = resolved(100)
    assert found.outcome(found.prediction.peak_gib * 2)["error"] == pytest.approx(-0.5)


def test_a_budget_is_refused_on_the_cpu(make_config, make_tuned):
    with pytest.raises(UserError, match=r"memory\.budget_gib=4\.0: caps the memory of a GPU"):
        registry.build("memory", make_config("memory.budget_gib=4").memory, make_tuned().base)


@pytest.mark.parametrize("layout", [[], ["data.packing=true", "data.packing_length=512"], ["data.padding_free=true"]])
def test_no_batch_is_larger_than_the_largest(make_config, processor, layout):
    from harness.data.assemble import data_module

    config = make_config("data.train_rows=64", "trainer.batch_size=4", "data.workers=0", *layout)
    data = data_module(config, processor)
    data.prepare()
    data.total_steps, data.trainer = 6, type("Trainer", (), {"global_rank": 0, "world_size": 1})()
    bound = data.largest_batch()
    for batch in data.train_dataloader():
        sizes = Extent(batch.input_ids.numel(), batch.num_visual, batch.num_supervised)
        assert np.all(np.array(dataclasses.astuple(sizes)) <= np.array(dataclasses.astuple(bound)))


@pytest.mark.gpu
def test_a_layers_memory_is_predicted_on_a_gpu(make_config, make_tuned):
    """The layer alone: bytes that stay allocated between its forward and its backward pass."""
    from harness.memory.kept import kept_by_layers

    tuned = make_tuned("model.dtype=bfloat16")
    tokens = 2**14
    (predicted, *_) = kept_by_layers(
        tuned.base, Extent(tokens, 0, 0), torch.device("cuda"), torch.bfloat16, compiled=False
    )[1:]
    base = tuned.base.cuda().train()
    language = base.model.language_model
    hidden = torch.randn(1, tokens, language.config.hidden_size, device="cuda").bfloat16().requires_grad_()
    places = torch.arange(tokens, device="cuda").expand(3, 1, -1)
    rotation = language.rotary_emb(hidden, places)
    starts = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
    run = partial(language.layers[1], position_embeddings=rotation, attention_mask=None)
    with torch.autocast("cuda", torch.bfloat16):
        run(hidden, cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=tokens, max_length_k=tokens)
        before = torch.cuda.memory_allocated()
        out = run(hidden, cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=tokens, max_length_k=tokens)
    measured = torch.cuda.memory_allocated() - before - out.nbytes
    assert measured == pytest.approx(predicted.none, rel=0.1)
