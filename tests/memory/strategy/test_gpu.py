"""Each strategy on one GPU in bfloat16, over NCCL: `pytest -m gpu tests/memory/strategy/test_gpu.py`."""

from importlib.util import find_spec

import pytest

GPU = ("trainer.accelerator=gpu", "model.dtype=bfloat16", "trainer.max_steps=8", "trainer.save_every_steps=4")
ONLY = ("tuner=dora", "tuner.dropout=0", *GPU)


@pytest.fixture(scope="module")
def plain(group):
    group.together(1, {"plain_gpu": ONLY}, resume=False)
    return group.done["plain_gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2 trainer.compile=true", "zero2", "zero3", "zero3_offload"])
def test_one_gpu_trains_as_without_a_strategy(group, figures, plain, strategy):
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    name = f"{strategy.replace(' trainer.compile=', '_')}_gpu"
    path = group.prepare(name, 1, *f"memory/strategy={strategy}".split(), *ONLY)
    group.run(1, path, f"{path}@4")
    folder = group.done[name]
    expected = figures(plain.metrics, "train/loss")
    assert figures(folder.path / "whole.jsonl", "train/loss") == pytest.approx(expected, rel=3e-2)
    assert figures(folder.metrics, "train/loss") == pytest.approx(expected, rel=3e-2) and len(expected) == 8
    assert (folder.path / "adapter" / "adapter_model.safetensors").is_file()
