"""The loss of an optimiser step does not depend on how its rows are dealt out."""

import pytest
import torch

from harness.errors import UserError
from harness.trainer.module import TrainingModule


class OneProcess:
    """Stands in for Lightning's trainer where only the accumulation matters."""

    world_size = 1

    def __init__(self, accumulate):
        self.accumulate_grad_batches = accumulate


def gradients(make_tuned, make_config, batches):
    tuned = make_tuned("tuner.dropout=0")
    module = TrainingModule(tuned, make_config("tuner.dropout=0"), total_steps=1)
    module._trainer = OneProcess(len(batches))
    total = sum(batch.num_supervised for batch in batches)
    for index, batch in enumerate(batches):
        batch.step_supervised = total
        # Lightning divides by the number of accumulated batches before the backward pass.
        (module.training_step(batch, index) / len(batches)).backward()
    loss = module.meter.end_step()
    return loss, {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}


def test_batch_8_once_equals_batch_1_eight_times(make_tuned, make_config, make_batch):
    rows = range(8)
    loss, expected = gradients(make_tuned, make_config, [make_batch(*rows)])
    torch.manual_seed(0)
    split_loss, got = gradients(make_tuned, make_config, [make_batch(row) for row in rows])
    torch.testing.assert_close(split_loss, loss, atol=1e-6, rtol=1e-5)
    assert any(grad.any() for grad in expected.values())
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_micro_batches_weigh_by_their_supervised_tokens(make_tuned, make_config, make_batch):
    """The average of per-batch averages would differ: the batches hold 1 and 5 rows."""
    loss, _ = gradients(make_tuned, make_config, [make_batch(0), make_batch(1, 2, 3, 4, 5)])
    torch.manual_seed(0)
    whole, _ = gradients(make_tuned, make_config, [make_batch(0, 1, 2, 3, 4, 5)])
    torch.testing.assert_close(loss, whole, atol=1e-6, rtol=1e-5)


def test_checkpoint_holds_trainable_weights_only(make_tuned, make_config):
    module = TrainingModule(make_tuned("tuner=dora"), make_config("tuner=dora"), total_steps=1)
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(module.state_dict()) == trainable
    assert all("lora_" in name for name in trainable)


def test_checkpoint_that_lacks_a_weight_is_refused(make_tuned, make_config):
    module = TrainingModule(make_tuned(), make_config(), total_steps=1)
    state = module.state_dict()
    state.popitem()
    with pytest.raises(RuntimeError, match="the checkpoint lacks 1 trainable weights"):
        module.on_load_checkpoint({"state_dict": state, "rng": [{}]})


def test_updates_by_scaled_gradients_are_refused(make_tuned, make_config):
    choice = ["tuner=full", "optim=galore", "optim.rank=8", "optim.max_grad_norm=null", "optim.per_parameter=true"]
    module = TrainingModule(make_tuned(*choice), make_config(*choice), total_steps=1)
    module._trainer = OneProcess(1)
    module._trainer.precision = "16-mixed"
    with pytest.raises(UserError, match=r"optim\.per_parameter=True: .*set memory\.precision=bf16"):
        module.configure_optimizers()
