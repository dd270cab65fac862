"""Joining the process group."""

import os

import pytest
import torch.distributed

from harness.errors import UserError
from harness.experiment import group
from harness.experiment.failure import read_all
from harness.experiment.folder import RunFolder
from harness.experiment.group import EarlyReport, joined

TWO = ("trainer.devices=2", "trainer.accelerator=cpu")


def test_one_process_needs_no_group(make_config):
    with joined(make_config()):
        assert not torch.distributed.is_initialized()


def test_nccl_on_the_cpu_is_refused(make_config):
    with (
        pytest.raises(UserError, match=r"trainer\.ddp_backend=nccl: works between GPUs only"),
        joined(make_config(*TWO, "trainer.ddp_backend=nccl")),
    ):
        pass


@pytest.mark.parametrize("same", [True, False])
def test_a_rank_of_another_config_does_not_join(make_config, monkeypatch, same):
    config, joins = make_config(*TWO, "trainer.ddp_timeout_s=7"), []
    store = torch.distributed.HashStore()
    store.set("config/0", group.config_hash(config if same else make_config(*TWO, "seed=7")))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(group, "open_store", lambda *arguments: store)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *a, **kw: joins.append((a, kw)))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: joins.append("left"))
    if same:
        with joined(config):
            pass
        (backend,), settings = joins[0]
        assert (backend, settings["rank"], settings["world_size"], settings["timeout"].seconds) == ("gloo", 1, 2, 7)
        assert joins[1:] == ["left"]
        return
    with pytest.raises(UserError, match="rank 1 has another config than rank 0"), joined(config):
        pass
    assert joins == []


def test_an_error_is_reported_before_lightning_tidies_up(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "RANK", "3")
    EarlyReport(RunFolder(tmp_path)).on_exception(None, None, ValueError("boom"))
    (found,) = read_all(RunFolder(tmp_path))
    assert (found.rank, found.reason) == (3, "ValueError: boom")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.ddp_timeout_s=0", r"trainer\.ddp_timeout_s=0\.0: must be more than 0 seconds"),
        ("trainer.ddp_backend=gloo", r"trainer\.ddp_backend=gloo: needs several processes"),
        ("trainer.nodes=0", r"trainer\.nodes=0: must be 1 or more"),
    ],
)
def test_settings_that_can_not_be_are_refused(make_config, override, message):
    with pytest.raises(UserError, match=message):
        make_config(override)
