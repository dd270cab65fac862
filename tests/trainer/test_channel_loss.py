"""Losses by channel: sums on the device, rows of the log, and their place in a training step."""

import dataclasses

import pytest
import torch

from harness.logging.metrics import MetricsFile, read
from harness.model.forward import token_losses
from harness.trainer.channel_loss import ChannelLoss, channel_metrics
from harness.trainer.meter import Totals
from harness.trainer.module import TrainingModule
from harness.trainer.recorder import Recorder

NAMES = ["web", "books"]


@pytest.fixture
def batch(make_batch):
    """Five rows, of which the first two tokens' channel is `web`, the next three's `books`, and the rest's neither."""
    batch = make_batch(0, 1, 2, 3, 4)
    channels = torch.tensor([1, 1, 2, 2, 2])
    return dataclasses.replace(batch, channels=torch.nn.functional.pad(channels, (0, batch.num_supervised - 5)))


def test_sums_and_tokens_of_each_channel_over_micro_batches(batch):
    channels, loss_K = ChannelLoss(NAMES), torch.arange(batch.num_supervised, dtype=torch.float32)
    channels.add(loss_K, batch)
    channels.add(loss_K + 1, batch)
    taken = channels.take(torch.device("cpu"))
    assert taken.tolist() == [0 + 1 + 1 + 2, 2 + 3 + 4 + 3 + 4 + 5, 4, 6]
    assert channel_metrics("train/loss", NAMES, taken.tolist()) == {"train/loss/web": 1.0, "train/loss/books": 3.5}
    assert channels.take(torch.device("cpu")).tolist() == [0] * 4


def test_a_channel_without_tokens_has_no_figure(batch, make_batch):
    channels = ChannelLoss([*NAMES, "code"])
    channels.add(torch.ones(batch.num_supervised), batch)
    plain = make_batch(0)
    channels.add(torch.ones(plain.num_supervised), plain)
    metrics = channel_metrics("val/loss", channels.names, channels.take(torch.device("cpu")).tolist())
    assert metrics == {"val/loss/web": 1.0, "val/loss/books": 1.0}


def test_sums_of_ranks_add_up_like_one_process(batch):
    """What the recorder reduces is a sum: of parts it is that of the whole."""
    loss_K, whole, halves = torch.rand(batch.num_supervised), ChannelLoss(NAMES), [ChannelLoss(NAMES) for _ in range(2)]
    whole.add(loss_K, batch)
    for rank, half in enumerate(halves):
        half.add(loss_K[rank::2], dataclasses.replace(batch, channels=batch.channels[rank::2]))
    device = torch.device("cpu")
    torch.testing.assert_close(sum(half.take(device) for half in halves), whole.take(device))


def test_a_training_step_tells_channels_apart(make_tuned, make_config, batch):
    config = make_config("data.channels=[web,books]")
    module = TrainingModule(make_tuned("tuner.dropout=0"), config, total_steps=1)
    module._trainer = type("OneProcess", (), {"world_size": 1, "accumulate_grad_batches": 1})()
    module.training_step(batch, 0)
    _, each_K = token_losses(module.tuned.base, batch)
    expected = [each_K[:2].sum(), each_K[2:5].sum(), torch.tensor(2.0), torch.tensor(3.0)]
    torch.testing.assert_close(module.channel_loss.take(module.device), torch.stack(expected))


def test_the_recorder_writes_them_into_the_row_of_their_step(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        recorder = Recorder(file, [], None, world_size=1, channels=NAMES)
        sums = torch.tensor([3.0, 0.0, 2.0, 0.0])
        recorder.step(1, torch.tensor(1.0), torch.tensor(2.0), {}, sums)
        recorder.step(2, torch.tensor(1.0), torch.tensor(2.0), {}, sums.flip(0))
        recorder.flush(Totals(steps=2, seconds=1.0), {})
        recorder.commit({})
    first, second = read(tmp_path / "metrics.jsonl")
    assert first["train/loss/web"] == 1.5 and "train/loss/books" not in first
    assert "train/loss/web" not in second and second["train/loss/books"] == pytest.approx(2 / 3)
