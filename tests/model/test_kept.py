"""Weights that one trial leaves for the next: what it did not change, and nothing while it runs."""

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from harness import registry
from harness.model.checkpoint_path import resolve
from harness.model.kept import Kept, digests
from harness.model.loading import load
from harness.model.qwen3_vl import Dtype, Qwen3VLConfig
from harness.model.weights import begin

registry.load()
CPU = torch.device("cpu")
TINY = Qwen3VLConfig(path="harness:tiny")
QUERY = "model.language_model.layers.0.self_attn.q_proj.weight"


def model_of(kept, config=TINY):
    weights = begin(config, CPU, kept)
    return load(config, CPU, weights).model, weights


@pytest.mark.parametrize("shape", [(7,), (64, 3), (1 << 20, 3)], ids=str)
def test_a_digest_sees_any_bit_that_changes(shape):
    tensor = torch.randn(shape)
    (before,) = digests({"a": tensor}).values()
    for place in (0, tensor.numel() // 2, tensor.numel() - 1):
        bits = tensor.view(-1).view(torch.int32)
        bits[place] ^= 1
        assert digests({"a": tensor})["a"] != before
        bits[place] ^= 1
    assert digests({"a": tensor.clone()})["a"] == before
    assert digests({"a": tensor.flip(0)})["a"] != before


def test_what_was_not_changed_is_not_read_again():
    kept = Kept()
    model, weights = model_of(kept)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert weights.reused_gib == 0
    with torch.no_grad():
        model.get_parameter(QUERY).data += 1  # which no version counter sees
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    weights.leave(model)
    del model
    again, weights = model_of(kept)
    assert (
        0
        < weights.reused_gib * 2**30
        == sum(v.nbytes for n, v in expected.items() if n not in (QUERY, "lm_head.weight"))
    )
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    moved = {name for name, value in again.state_dict().items() if value.data_ptr() != places[name]}
    assert moved == {QUERY}


def test_a_model_that_trained_whole_leaves_nothing():
    kept = Kept()
    model, weights = model_of(kept)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    weights.leave(model)
    _, weights = model_of(kept)
    assert weights.reused_gib == 0


def test_adapters_leave_the_base_as_it_was(make_config, outlook):
    kept = Kept()
    config = make_config("tuner=dora")
    weights = begin(config.model, CPU, kept)
    loaded = load(config.model, CPU, weights)
    policy = registry.build("freeze", config.freeze, loaded.model)
    weights.leave(registry.build("tuner", config.tuner, loaded, policy, outlook).model)
    del loaded, policy
    model, weights = model_of(kept)
    stock, _ = model_of(None)
    assert weights.reused_gib * 2**30 == sum(value.nbytes for value in stock.parameters())
    assert model.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("other", ["type", "folder", "file"])
def test_other_weights_are_not_mixed_in(other, tmp_path):
    folder = Path(shutil.copytree(resolve("harness:tiny"), tmp_path / "a"))
    config = Qwen3VLConfig(path=str(folder))
    kept = Kept()
    model, weights = model_of(kept, config)
    weights.leave(model)
    if other == "type":
        config = Qwen3VLConfig(path=str(folder), dtype=Dtype.bfloat16)
    elif other == "folder":
        config = Qwen3VLConfig(path=str(shutil.copytree(folder, tmp_path / "b")))
    else:
        (folder / "model.safetensors").touch()
    again, weights = model_of(kept, config)
    assert weights.reused_gib == 0 and again.dtype is (torch.bfloat16 if other == "type" else torch.float32)


def test_nothing_is_held_while_a_trial_runs():
    kept = Kept()
    model, weights = model_of(kept)
    weights.leave(model)
    del model
    model, weights = model_of(kept)
    tensor = weakref.ref(model.get_parameter(QUERY).untyped_storage())
    assert kept.holds_model is False
    del model, weights
    gc.collect()
    assert tensor() is None
