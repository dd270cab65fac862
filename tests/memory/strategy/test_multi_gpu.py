"""Each strategy on two GPUs over NCCL against one GPU: `pytest -m multi_gpu tests/memory/strategy`."""

import shutil
from importlib.util import find_spec

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from harness.experiment.folder import RunFolder
from harness.model.checkpoint_path import resolve
from tests.memory.strategy.conftest import slug

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
    "strategy",
    [
        *("ddp", "fsdp2", "fsdp2 trainer.compile=true", "fsdp2 memory.strategy.copy_engines=true"),
        *("zero1", "zero2", "zero3", "zero3 trainer.compile=true", "zero3_offload"),
    ],
)
def test_two_gpus_train_as_one_does(group, figures, one_gpu, strategy):
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    tuner, plain = one_gpu
    name = f"{slug(strategy)}_two_gpus_{tuner}"
    path = group.prepare(name, 2, *f"memory/strategy={strategy}".split(), *CASES[tuner])
    group.run(2, path)
    # DeepSpeed keeps its process groups for good: a resumed run has processes of its own.
    group.run(2, f"{path}@4")
    folder = group.done[name]
    expected = figures(plain.metrics, "train/loss")
    assert len(expected) == 8
    for curve in (folder.path / "whole.jsonl", folder.metrics):
        assert figures(curve, "train/loss") == pytest.approx(expected, rel=3e-2)
    loads_in_plain_libraries(folder, tuner)
    if strategy.startswith(("ddp", "fsdp2")):
        goes_on_with_one(group, folder, figures, expected)


def loads_in_plain_libraries(folder, tuner):
    """Every weight of the export is in the model that transformers or PEFT makes of it."""
    options = {"dtype": torch.bfloat16}
    if tuner == "full":
        exported = load_file(folder.path / "model" / "model.safetensors")
        loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder.path / "model", **options).state_dict()
    else:
        exported = load_file(folder.path / "adapter" / "adapter_model.safetensors")
        base = Qwen3VLForConditionalGeneration.from_pretrained(resolve("harness:tiny"), **options)
        whole = PeftModel.from_pretrained(base, folder.path / "adapter").state_dict()
        loaded = {key.replace(".default.", "."): value for key, value in whole.items()}
    for key, value in exported.items():
        assert torch.equal(loaded[key].to(value.dtype), value), key


def goes_on_with_one(group, folder, figures, expected):
    """A checkpoint of two processes is one of a single one that has the whole batch."""
    alone = RunFolder(group.home / f"{folder.path.name}_alone")
    shutil.copytree(folder.path, alone.path, symlinks=True)
    frozen = OmegaConf.load(alone.config)
    frozen.trainer.devices, frozen.trainer.batch_size = 1, 4
    OmegaConf.save(frozen, alone.config)
    group.run(1, f"{alone.path}@4")
    assert figures(alone.metrics, "train/loss") == pytest.approx(expected, rel=3e-2)
