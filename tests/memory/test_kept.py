"""What is predicted to be kept is what autograd saves, for each tuner and both towers."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from harness import registry
from harness.data.extent import Extent
from harness.errors import UserError
from harness.memory.kept import kept_by_blocks, kept_by_layers
from harness.model.forward import supervised_loss

registry.load()
CPU = torch.device("cpu")
TUNERS = [name for name in registry.names("tuner") if name != "peft"]


def measured(tuned, batch, modules):
    """Bytes that autograd saves inside of modules, weights left out, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in (*tuned.model.parameters(), *tuned.model.buffers())}
    kept, inside = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    for module in modules:
        module.register_forward_pre_hook(lambda *_: inside.append(1))
        module.register_forward_hook(lambda *_: inside.pop() and None)
    tuned.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        supervised_loss(tuned.base, batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("tuner", TUNERS)
def test_layers_of_every_tuner_are_predicted(make_tuned, make_batch, tuner):
    tuned, batch = make_tuned(f"tuner={tuner}"), make_batch(0)
    layers = tuned.base.model.language_model.layers
    kept = kept_by_layers(tuned.base, Extent(batch.input_ids.numel(), 0, 0), CPU, torch.float32, compiled=False)
    assert len(kept) == len(layers)
    named = {**dict(tuned.model.named_parameters()), **dict(tuned.model.named_buffers())}
    assert not any(isinstance(tensor, FakeTensor) for tensor in named.values())
    assert all(0 <= layer.full <= layer.selective <= layer.none for layer in kept)
    got = measured(tuned, batch, layers)
    assert sum(layer.none for layer in kept) == pytest.approx(got, rel=0.1)


def test_a_method_that_looks_at_values_is_refused(make_tuned):
    tuned = make_tuned("tuner=peft", "tuner.method=lokr")
    with pytest.raises(UserError, match=r"memory\.checkpointing=auto: can not be predicted"):
        kept_by_layers(tuned.base, Extent(8, 0, 0), CPU, torch.float32, compiled=False)


def test_blocks_of_a_vit_that_trains_are_predicted(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=full", "freeze=none"), make_batch(0)
    kept = kept_by_blocks(tuned.base, Extent(0, batch.num_visual, 0), CPU, torch.float32, compiled=False)
    got = measured(tuned, batch, tuned.base.model.visual.blocks)
    assert sum(block.none for block in kept) == pytest.approx(got, rel=0.15)


def test_compiled_layers_keep_no_more_and_tracing_changes_nothing(make_tuned):
    tuned = make_tuned()
    state = torch.get_rng_state()
    eager, compiled = (
        kept_by_layers(tuned.base, Extent(64, 0, 0), CPU, torch.bfloat16, compiled=compiled)
        for compiled in (False, True)
    )
    assert all(one.none <= other.none for one, other in zip(compiled, eager, strict=True))
    assert torch.equal(torch.get_rng_state(), state) and not tuned.base.model.language_model.layers[0].training
