"""Each strategy on two GPUs over NCCL against one GPU: `pytest -m multi_gpu tests/memory/strategy`."""

from importlib.util import find_spec

import pytest

GPU = ("trainer.accelerator=gpu", "model.dtype=bfloat16", "trainer.max_steps=8", "trainer.save_every_steps=4")
CASES = {
    "lora": ("tuner=lora", "tuner.dropout=0", *GPU),
    "full": ("tuner=full", "freeze=none", *GPU),
}


@pytest.fixture(scope="module", params=CASES)
def one_gpu(request, group):
    name = f"one_gpu_{request.param}"
    group.together(1, {name: CASES[request.param]}, resume=False)
    return request.param, group.done[name]


@pytest.mark.multi_gpu
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", "fsdp2 trainer.compile=true", "zero1", "zero2", "zero3", "zero3_offload"]
)
def test_two_gpus_train_as_one_does(group, figures, one_gpu, strategy):
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    tuner, plain = one_gpu
    name = f"{strategy.replace(' trainer.compile=', '_')}_two_gpus_{tuner}"
    path = group.prepare(name, 2, *f"memory/strategy={strategy}".split(), *CASES[tuner])
    group.run(2, path)
    # DeepSpeed keeps its process groups for good: a resumed run has processes of its own.
    group.run(2, f"{path}@4")
    folder = group.done[name]
    expected = figures(plain.metrics, "train/loss")
    assert len(expected) == 8
    for curve in (folder.path / "whole.jsonl", folder.metrics):
        assert figures(curve, "train/loss") == pytest.approx(expected, rel=3e-2)
    exported = "adapter/adapter_model.safetensors" if tuner == "lora" else "model/model.safetensors"
    assert (folder.path / exported).is_file()
