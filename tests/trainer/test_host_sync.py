"""Counting waits for the GPU; without one, by the warnings that torch would give."""

import logging
import warnings

import pytest
import torch

from harness.errors import UserError
from harness.trainer.host_sync import MESSAGE, SyncCounter, sync_counter


@pytest.fixture
def mode(monkeypatch):
    """Stands in for torch's debug mode and keeps what it was set to."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    return seen


def wait() -> None:
    warnings.warn(MESSAGE, stacklevel=1)


def test_each_wait_counts_and_each_place_is_logged_once(mode, caplog):
    caplog.set_level(logging.INFO, "harness.trainer.host_sync")
    counter = SyncCounter()
    with counter.counting():
        for _ in range(3):
            wait()
        assert counter.take() == 3
        warnings.warn(MESSAGE, stacklevel=1)
    assert counter.take() == 1
    assert sorted(counter.places.values()) == [1, 3]
    seen = [message for message in caplog.messages if message.startswith("the host waits")]
    assert len(seen) == 2 and "test_host_sync.py" in seen[0] and "(wait)" in seen[0]
    assert "the host waited for the GPU 3 times at" in caplog.messages[2]
    assert mode == ["warn", "default"]


def test_other_warnings_go_where_they_went(mode):
    with pytest.warns(UserWarning, match="something else"), SyncCounter().counting():
        warnings.warn("something else", stacklevel=1)


def test_pauses_switch_the_mode_off(mode):
    counter = SyncCounter()
    with counter.counting(), counter.paused():
        assert mode[-1] == "default"
    assert mode == ["warn", "default", "warn", "default"]


def test_on_the_cpu_it_is_refused():
    with pytest.raises(UserError, match=r"trainer\.debug_syncs=True: counts waits for a GPU"):
        sync_counter(True, "cpu")
    assert sync_counter(False, "cpu") is None


@pytest.mark.gpu
def test_torch_tells_of_waits_forward_and_backward():
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            grad.sum().item()
            return grad * 2

    x = torch.ones(4, device="cuda", requires_grad=True)
    counter = SyncCounter()
    with counter.counting():
        (x * 2).sum().backward()
        quiet = counter.take()
        x.sum().item()
        ahead = counter.take()
        Waits.apply(x).sum().backward()
        behind = counter.take()
    assert (quiet, ahead, behind) == (0, 1, 1)
    assert any("test_host_sync.py" in place for place in counter.places)
