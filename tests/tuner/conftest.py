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


@pytest.fixture
def check_on_gpu(no_waits):
    """Returns a function that runs a layer's steps on a GPU: none waits for it, and compiled ones give the same."""

    def check(layer):
        layer, x = layer.cuda(), torch.randn(64, layer.in_features, device="cuda").bfloat16().requires_grad_()
        layer.base_layer.bfloat16()

        def step(forward):
            with torch.autocast("cuda", torch.bfloat16):
                out = forward(x)
            out.backward(out.detach())
            return out

        expected = step(layer)
        with no_waits():
            step(layer)
        ours = step(torch.compile(layer, fullgraph=True))
        assert (ours - expected).norm() < 0.01 * expected.norm()

    return check
