"""Each strategy on one GPU in bfloat16, over NCCL: `pytest -m gpu tests/memory/strategy/test_gpu.py`."""

from importlib.util import find_spec

import pytest

from tests.memory.strategy.conftest import slug

GPU = ("trainer.accelerator=gpu", "model.dtype=bfloat16", "trainer.max_steps=8", "trainer.save_every_steps=4")
ONLY = ("tuner=dora", "tuner.dropout=0", *GPU)


@pytest.fixture(scope="module")
def plain(group):
    group.together(1, {"plain_gpu": ONLY}, resume=False)
    return group.done["plain_gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "strategy",
    [
        *("ddp", "fsdp2", "fsdp2 trainer.compile=true", "fsdp2 memory.strategy.cpu_offload=true"),
        "fsdp2 memory.strategy.cpu_offload=true memory.strategy.replicate_trained=false",
        *("zero2", "zero3", "zero3_offload"),
    ],
)
def test_one_gpu_trains_as_without_a_strategy(group, figures, plain, strategy):
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    name = f"{slug(strategy)}_gpu"
    path = group.prepare(name, 1, *f"memory/strategy={strategy}".split(), *ONLY)
    group.run(1, path, f"{path}@4")
    folder = group.done[name]
    expected = figures(plain.metrics, "train/loss")
    assert figures(folder.path / "whole.jsonl", "train/loss") == pytest.approx(expected, rel=3e-2)
    assert figures(folder.metrics, "train/loss") == pytest.approx(expected, rel=3e-2) and len(expected) == 8
    assert (folder.path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.gpu
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_state_in_8_bits_goes_on_under_fsdp2(group, figures, optim):
    pytest.importorskip("bitsandbytes", reason="extra bitsandbytes")
    settings = ("memory/strategy=fsdp2", "memory.strategy.replicate_trained=true", f"optim={optim}")
    path = group.prepare(f"{optim}_gpu", 1, *ONLY, *settings, "optim.min_8bit_size=1")
    group.run(1, path, f"{path}@4")
    folder = group.done[f"{optim}_gpu"]
    expected = figures(folder.path / "whole.jsonl", "train/loss")
    assert figures(folder.metrics, "train/loss") == pytest.approx(expected, rel=1e-3) and len(expected) == 8
