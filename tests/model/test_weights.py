"""Weights read in threads: the model that transformers would load, wherever it goes, and readings that end early."""

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.checkpoint_path import resolve
from harness.model.loading import load
from harness.model.qwen3_vl import Dtype, Qwen3VLConfig
from harness.model.weights import Weights, begin

registry.load()
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """The tiny checkpoint, to be spoiled."""
    return Path(shutil.copytree(resolve("harness:tiny"), tmp_path / "checkpoint"))


@pytest.fixture
def sharded(folder):
    """The same in two files with an index, its tensors in no order."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8"
    )
    return folder


def stock(path, **options):
    return Qwen3VLForConditionalGeneration.from_pretrained(path, **{"dtype": "auto"} | options)


def assert_equal(ours, theirs):
    """Parameters, persistent buffers and the others, which no file holds: RoPE's frequencies."""
    for items in ("named_parameters", "named_buffers"):
        mine, other = dict(getattr(ours, items)()), dict(getattr(theirs, items)())
        assert mine.keys() == other.keys()
        for name, value in other.items():
            if "patch_embed" not in name:
                assert mine[name].dtype == value.dtype and torch.equal(mine[name].cpu(), value.cpu()), name


def test_the_model_is_that_of_transformers(sharded):
    model = load(Qwen3VLConfig(path=str(sharded))).model
    theirs = stock(sharded)
    assert_equal(model, theirs)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.generation_config == theirs.generation_config
    assert model.name_or_path == model.config.name_or_path == str(sharded)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [Dtype.bfloat16, Dtype.float32, Dtype.auto])
def test_types_are_converted_on_the_way(folder, dtype):
    config = Qwen3VLConfig(path=str(folder), dtype=dtype)
    read = begin(config, CPU).take()
    kinds = {tensor.dtype for tensor in read.values()}
    assert kinds == {torch.float32 if dtype is Dtype.auto else getattr(torch, dtype.name)}
    options = {} if dtype is Dtype.auto else {"dtype": getattr(torch, dtype.name)}
    assert_equal(load(config).model, stock(folder, **options))


def test_a_reading_that_has_begun_is_the_one_that_is_used(folder):
    config = Qwen3VLConfig(path=str(folder))
    weights = begin(config, CPU)
    weights._join()
    (folder / "model.safetensors").unlink()
    assert_equal(load(config, CPU, weights).model, stock(resolve("harness:tiny")))


def test_names_stand_in_the_order_of_the_files(sharded):
    expected = []
    for file in sorted(sharded.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            expected += list(opened.keys())
    assert list(Weights(sharded, CPU, None).take()) == expected


def test_a_reading_can_be_ended_and_leaves_nothing(folder, monkeypatch):
    gate, interval = threading.Event(), sys.getswitchinterval()
    monkeypatch.setattr(Weights, "_converted", lambda self, tensor: gate.wait(0.2) and tensor)
    weights = Weights(folder, CPU, None)
    weights.stop()
    assert not any(thread.is_alive() for thread in weights._threads)
    assert weights.take() == {} and sys.getswitchinterval() == interval


def test_a_hub_id_and_files_of_other_names_are_left_to_transformers(folder):
    assert begin(Qwen3VLConfig(path="Qwen/Qwen3-VL-4B-Instruct"), CPU) is None
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = Qwen3VLConfig(path=str(folder))
    assert begin(config, CPU) is None
    assert_equal(load(config).model, stock(resolve("harness:tiny")))


def _cut(folder):
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_cut, "can not be read"),
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "can not be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "index.json is damaged"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "b": "c"}}'),
            "index.json is damaged",
        ),
    ],
    ids=["cut off", "missing", "no JSON", "no index", "no names"],
)
def test_files_that_can_not_be_read_are_named_when_the_model_is_made(sharded, spoil, reason):
    spoil(sharded)
    config = Qwen3VLConfig(path=str(sharded))
    weights = begin(config, CPU)
    with pytest.raises(UserError, match=rf"model\.path=.*{reason}"):
        load(config, CPU, weights)


@pytest.mark.gpu
def test_on_a_gpu_everything_lies_there_with_the_same_values(sharded):
    config = Qwen3VLConfig(path=str(sharded))
    device = torch.device("cuda", 0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = load(config, device, begin(config, device)).model
    size = sum(parameter.nbytes for parameter in ours.parameters())
    assert torch.cuda.max_memory_allocated() - before < 1.5 * size
    assert {value.device for value in [*ours.parameters(), *ours.buffers()]} == {device}
    assert_equal(ours, stock(sharded))


GPU_TUNERS = [[f"tuner={name}"] for name in registry.names("tuner")] + [
    ["tuner=lora", "tuner.init=pissa"],
    ["tuner=lora", "tuner.init=olora"],
    ["tuner=lora", "tuner.init=orthogonal"],
    ["tuner=lora", "tuner.init=eva", "tuner.eva.batches=2"],
    ["tuner=lora", "tuner.init=corda", "tuner.corda.batches=2"],
    ["tuner=lora", "tuner.init=lora_ga"],
    ["tuner=lora", "tuner.init=loftq"],
    ["tuner=lora", "tuner.modules_to_save=[lm_head]"],
    ["tuner=lora", 'model.new_special_tokens=["<cat>"]', "model.train_new_tokens=true"],
    ["tuner=full", "freeze=none"],
]


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", GPU_TUNERS, ids=" ".join)
def test_every_tuner_is_built_on_a_base_that_is_on_the_gpu(make_config, make_batch, tmp_path, overrides):
    """It starts as on the CPU where it is random in nothing that shows, and trains there."""
    from harness.model.forward import supervised_loss
    from harness.tuner.new_tokens import settle
    from harness.tuner.outlook import Outlook

    def build(device):
        torch.manual_seed(0)
        config = make_config(*overrides, "model.attention=sdpa")
        loaded = registry.build("model", config.model, device)
        policy = registry.build("freeze", config.freeze, loaded.model)
        batches = lambda number, size, _: (make_batch(*range(i, i + size)) for i in range(number))  # noqa: E731
        outlook = Outlook(20, batches, device, tmp_path / device.type / "start.safetensors")
        (tmp_path / device.type).mkdir()
        tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
        settle(tuned, loaded.new_tokens, config.model.train_new_tokens)
        return tuned

    device, batch = torch.device("cuda", 0), make_batch(0, 1, 2)
    tuned = build(device)
    # As Lightning does with the whole module before the first step.
    tuned.model.to(device).eval()
    loss = supervised_loss(tuned.base, batch.to(device))
    loss.backward()
    trained = [parameter for parameter in tuned.model.parameters() if parameter.requires_grad]
    assert trained and any(parameter.grad is not None and parameter.grad.any() for parameter in trained)
    expected = supervised_loss(build(CPU).base.eval(), batch).item()
    # ReFT begins at random.
    assert loss.item() == pytest.approx(expected, rel=0.2 if "reft" in overrides[0] else 1e-3)
