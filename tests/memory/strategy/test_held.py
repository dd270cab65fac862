"""What of a model lies on each GPU, by strategy."""

import json

import pytest

from harness.memory.strategy.auto import AutoConfig
from harness.memory.strategy.config import Bytes, Model
from harness.memory.strategy.deepspeed import DeepspeedConfig
from harness.memory.strategy.fsdp2 import Fsdp2Config
from harness.memory.strategy.zero1 import Zero1Config
from harness.memory.strategy.zero2 import Zero2Config
from harness.memory.strategy.zero3 import Zero3Config

GB, VALUES = 1e9, 7_500_000_000
# Trained in float32 by Adam: 4 bytes a weight and a gradient, 8 of state.
PAPER = Model(Bytes(4 * VALUES, 4 * VALUES, 8 * VALUES), VALUES, 4 * VALUES, largest_layer=0, outside=0)


@pytest.mark.parametrize(("stage", "gigabytes"), [(Zero1Config, 31.4), (Zero2Config, 16.6), (Zero3Config, 1.9)])
def test_stages_of_zero_take_what_the_paper_says(stage, gigabytes):
    """Figure 1 of arXiv 1910.02054: 7.5 B parameters on 64 GPUs, without buckets."""
    held = stage(reduce_bucket_size=1).held(PAPER, 64)
    assert sum(held) / GB == pytest.approx(gigabytes, abs=0.06)


def test_what_is_offloaded_is_not_on_the_gpu():
    on_gpu, on_host = (Zero2Config(offload_optimizer=where).held(PAPER, 8) for where in (False, True))
    assert on_gpu.state == 12 * VALUES / 8 and on_host == on_gpu._replace(state=0)
    model = PAPER._replace(largest_layer=100.0, outside=50.0)
    assert Zero3Config(offload_param=True).held(model, 8).weights == 250
    assert Fsdp2Config(cpu_offload=True).held(model, 8) == (250, 0, 0)


def test_fsdp2_splits_all_and_gathers_two_layers():
    model = PAPER._replace(largest_layer=8e8, outside=4e8)
    whole, held = PAPER.whole, Fsdp2Config().held(model, 8)
    assert held == (whole.weights / 8 + 2e9, whole.gradients / 8, whole.state / 8)
    assert Fsdp2Config().held(model, 1) == whole
    assert Fsdp2Config(reshard_after_forward=False).held(model, 8).weights == whole.weights * 9 / 8
    assert Fsdp2Config(shard_size=2).held(model, 8).state == whole.state / 2


def test_fsdp2_has_small_adapters_whole():
    """A hundredth of the weights trains, and a copy of its gradients is there while they are summed."""
    model = Model(Bytes(1000.0, 10.0, 20.0), 2, trained_bytes=10.0, largest_layer=80.0, outside=40.0)
    assert Fsdp2Config().held(model, 4) == (990 / 4 + 10 + 0.99 * 200, 20, 20)
    assert Fsdp2Config().held(model, 1) == model.whole
    assert Fsdp2Config(cpu_offload=True).held(model, 4) == (10 + 0.99 * 200, 20, 20)
    # A part at a time of what is large.
    assert Fsdp2Config(replicate_trained=True).held(PAPER, 8).gradients == 4 * VALUES + 4 * 2**24
    split = Fsdp2Config(replicate_trained=False).held(model, 4)
    assert split == (1000 / 4 + 200, 10 / 4, 20 / 4)
    assert Fsdp2Config().held(model._replace(trained_bytes=100.0), 4) == split


def test_zero3_has_the_weights_of_small_adapters_whole_beside_their_shares():
    model = Model(Bytes(1000.0, 10.0, 20.0), 2, trained_bytes=10.0, largest_layer=80.0, outside=40.0)
    kept, split = (Zero3Config(keep_trained=keep).held(model, 4) for keep in (None, False))
    # Two values in 16 bits.
    assert kept == split._replace(weights=split.weights + 4)
    assert Zero3Config().held(model._replace(trained_bytes=100.0), 4) == split


def test_ddp_has_all_of_it_and_gradients_twice():
    assert AutoConfig().held(PAPER, 1) == PAPER.whole
    assert AutoConfig().held(PAPER, 8).gradients == 2 * PAPER.whole.gradients


@pytest.mark.parametrize(
    ("section", "same"),
    [
        ({"stage": 2}, Zero2Config()),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, Zero2Config(offload_optimizer=True)),
        ({"stage": 3, "offload_param": {"device": "none"}}, Zero3Config()),
        ({"stage": 1}, Zero1Config()),
    ],
    ids=str,
)
def test_a_json_file_has_what_its_stage_has(tmp_path, section, same):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": section}), encoding="utf-8")
    assert DeepspeedConfig(file=str(path)).held(PAPER, 8) == same.held(PAPER, 8)
