import io
from collections import OrderedDict

import pytest
import torch

from harness.trainer.snapshot import Snapshot


def state():
    """With what a checkpoint has: views, shared storages, numbers, several types, nested containers."""
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "state_dict": OrderedDict(a=base, b=base[1:], c=base.t()),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2, dtype=torch.bfloat16)}}}],
        "loops": {"done": (1, None, "x")},
        "rng": torch.get_rng_state(),
        "bytes": torch.zeros(5, dtype=torch.uint8),
    }


def saved(tree):
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


@pytest.mark.parametrize("keeps", [True, False])
def test_a_snapshot_is_saved_as_the_same_bytes(keeps):
    before = state()
    assert saved(Snapshot(keeps).take(before)) == saved(before)


def test_a_kept_snapshot_stays_as_it_is_and_uses_its_memory_again():
    now, snapshot = state(), Snapshot(keeps=True)
    expected, taken = saved(now), snapshot.take(now)
    assert snapshot.num_bytes == 12 * 4 + 4 + 2 * 2 + now["rng"].numel() + 5
    address = taken["state_dict"]["a"].data_ptr()
    now["state_dict"]["a"].zero_()
    now["optimizer_states"][0]["state"][0]["step"] += 1
    assert saved(taken) == expected
    assert snapshot.take(now)["state_dict"]["a"].data_ptr() == address
    assert saved(snapshot.take(now)) == saved(now)


@pytest.mark.gpu
@pytest.mark.parametrize("keeps", [True, False])
def test_a_snapshot_of_a_gpu_is_on_the_host(keeps):
    weights = torch.randn(1000, device="cuda")
    taken = Snapshot(keeps).take({"a": weights, "b": weights[5:]})
    assert taken["a"].device.type == "cpu" and torch.equal(taken["b"], weights[5:].cpu())
    assert taken["a"].untyped_storage()._cdata == taken["b"].untyped_storage()._cdata
    assert taken["a"].is_pinned() == keeps
