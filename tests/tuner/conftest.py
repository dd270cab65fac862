import pytest
import torch

from harness.model.forward import supervised_logits, supervised_loss


@pytest.fixture
def against_peft(make_tuned, make_batch):
    """Returns what a training step gives, ours and with PEFT's forward passes: logits and gradients, and the layers."""

    def results(tuned, batch):
        tuned.model.zero_grad()
        supervised_loss(tuned.base, batch).backward()
        grads = {name: p.grad.clone() for name, p in tuned.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            return supervised_logits(tuned.base, batch), grads

    def compare(*options, spread):
        tuned, batch = make_tuned(*options), make_batch(0, 1, 2)
        generator = torch.Generator().manual_seed(1)
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.data += spread * torch.randn(parameter.shape, generator=generator)
        tuned.model.train()
        ours = results(tuned, batch)
        layers = [module for module in tuned.model.modules() if hasattr(module, "forward_apart")]
        for layer in layers:
            layer.forward = layer.forward_apart
        return ours, results(tuned, batch), layers

    return compare
