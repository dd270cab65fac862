"""Where copy engines are refused, and what they gather into; on GPUs see test_multi_gpu.py."""

import os

import pytest
import torch
from torch import distributed as dist

from harness.errors import UserError
from harness.memory.strategy import copy_engines
from harness.memory.strategy.copy_engines import BUFFERS, POLICY, CopyEngineAllGather
from harness.memory.strategy.fsdp2 import Fsdp2Config


@pytest.fixture
def gpus(monkeypatch):
    """Eight GPUs that reach each other, and an environment without settings of NCCL's."""

    def with_nccl(*version, reach=True):
        monkeypatch.setattr(torch.cuda.nccl, "version", lambda: version)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: reach or (one, other) != (3, 2))

    for name in (POLICY, "NCCL_NVLS_ENABLE"):
        # Set first, for the variable to be gone behind the test whatever that sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return with_nccl


@pytest.mark.parametrize(
    ("shard_size", "processes", "nodes", "version"),
    [(None, 8, 1, (2, 28, 9)), (4, 16, 2, (2, 28, 9)), (2, 2, 1, (2, 31, 2))],
)
def test_the_policy_is_set_before_there_is_a_group(gpus, shard_size, processes, nodes, version):
    gpus(*version)
    config = Fsdp2Config(shard_size=shard_size, copy_engines=True)
    assert config.backend("nccl", processes, nodes) == "nccl"
    assert os.environ[POLICY] == "2"


@pytest.mark.parametrize(
    ("shard_size", "processes", "nodes", "version", "reach", "message"),
    [
        (
            None,
            16,
            2,
            (2, 28, 9),
            True,
            "copy engines are those of one node; give memory.strategy.shard_size a divisor",
        ),
        (3, 12, 3, (2, 28, 9), True, "copy engines are those of one node"),
        (None, 4, 1, (2, 27, 5), True, r"takes NCCL 2\.28 or newer, and torch has 2\.27\.5"),
        (None, 2, 1, (2, 29, 7), True, "two processes may wait for ever .*export NCCL_NVLS_ENABLE=0"),
        (None, 4, 1, (2, 28, 9), False, "GPUs 2 and 3 do not reach each other's memory"),
    ],
)
def test_what_nccl_would_do_with_kernels_is_refused(gpus, shard_size, processes, nodes, version, reach, message):
    gpus(*version, reach=reach)
    config = Fsdp2Config(shard_size=shard_size, copy_engines=True)
    with pytest.raises(UserError, match=rf"memory\.strategy\.copy_engines=true: {message}"):
        config.backend("nccl", processes, nodes)
    assert POLICY not in os.environ


def test_another_policy_and_another_backend_are_refused(gpus, monkeypatch):
    gpus(2, 28, 9)
    config = Fsdp2Config(copy_engines=True)
    with pytest.raises(UserError, match="takes NCCL, and processes talk by gloo; set false"):
        config.backend("gloo", 4, 1)
    monkeypatch.setenv(POLICY, "1")
    with pytest.raises(UserError, match="NCCL_CTA_POLICY=1 is set for another policy"):
        config.backend("nccl", 4, 1)


def test_one_process_goes_on_without(gpus):
    gpus(2, 27, 5)
    assert Fsdp2Config(copy_engines=True).backend("gloo", 1, 1) == "gloo"
    assert Fsdp2Config(copy_engines=True, shard_size=1).backend("nccl", 4, 1) == "nccl"
    assert POLICY not in os.environ


@pytest.fixture
def gathering(monkeypatch):
    monkeypatch.setattr(copy_engines.symmetric_memory, "set_backend", lambda name: None)
    monkeypatch.setattr(dist, "barrier", lambda *group, **settings: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(copy_engines, "_empty", lambda size, device: torch.empty(size, dtype=torch.uint8))
    return CopyEngineAllGather(None)


def test_buffers_of_a_size_are_handed_out_in_turn(gathering):
    """Whatever was let go of first: the n-th of a size is the same one on every rank."""
    own = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    places = {size: [gathering.allocate((size, 2), **own).data_ptr() for _ in range(7)] for size in (8, 16)}
    for found in places.values():
        assert len(set(found)) == BUFFERS and found[BUFFERS:] == found[:-BUFFERS]
    assert not set(places[8]) & set(places[16])
    bits = gathering.allocate((32,), dtype=torch.uint8, device=torch.device("cpu"))
    assert bits.data_ptr() in places[8] and (bits.shape, bits.dtype) == ((32,), torch.uint8)


def test_a_buffer_in_use_is_not_handed_out(gathering):
    own = {"dtype": torch.uint8, "device": torch.device("cpu")}
    kept = [gathering.allocate((8,), **own) for _ in range(BUFFERS)]
    with pytest.raises(RuntimeError, match="more than 3 gathered layers of 8 bytes are in use at once"):
        gathering.allocate((8,), **own)
    assert len(kept) == BUFFERS


def test_a_plan_counts_the_buffers():
    from harness.memory.strategy.config import Bytes, Model

    model = Model(Bytes(80.0, 10.0, 20.0), 5, 20.0, 2.0, 10.0)
    plain, with_engines = (Fsdp2Config(copy_engines=chosen).held(model, 4) for chosen in (False, True))
    assert with_engines == plain._replace(weights=plain.weights + BUFFERS * 2.0)
    assert Fsdp2Config(copy_engines=True).held(model, 1) == Fsdp2Config().held(model, 1)
