"""Checkpoints that are quantised already: which load, with what, and under which tuners."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from harness import registry
from harness.errors import UserError
from harness.model import prequantized
from harness.model.checkpoint_path import resolve
from harness.model.prequantized import check_loads, check_tuner, method_of
from harness.model.qwen3_vl import Qwen3VLConfig
from harness.model.weights import begin


@pytest.fixture
def folder(tmp_path):
    """Makes a checkpoint whose config says that it is quantised."""

    def make(method: str) -> Path:
        target = tmp_path / method
        shutil.copytree(resolve("harness:tiny"), target)
        described = json.loads((target / "config.json").read_text(encoding="utf-8"))
        described["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
        (target / "config.json").write_text(json.dumps(described), encoding="utf-8")
        return target

    return make


@pytest.mark.parametrize(("method", "package"), [("awq", "gptqmodel"), ("gptq", "gptqmodel")])
def test_the_missing_package_is_named_with_its_extra(folder, monkeypatch, method, package):
    monkeypatch.setattr(prequantized, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"is quantised by {method}, and {package} is not installed; .*\[gptq\]"):
        registry.build("model", Qwen3VLConfig(path=str(folder(method))))


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ("bitsandbytes", "memory/quant=bnb4 or bnb8"),
        ("fp8", "memory=fp8_base"),
        ("compressed-tensors", "memory/quant=bnb4"),
    ],
)
def test_others_are_refused_with_what_to_do_instead(folder, method, instead):
    with pytest.raises(UserError, match=rf"is quantised by {method}, on which no adapter trains here; .*{instead}"):
        registry.build("model", Qwen3VLConfig(path=str(folder(method))))


def test_their_weights_are_left_to_transformers(folder):
    import torch

    assert begin(Qwen3VLConfig(path=str(folder("gptq"))), torch.device("cpu")) is None


def test_with_its_package_a_checkpoint_is_let_through(monkeypatch):
    monkeypatch.setattr(prequantized, "find_spec", lambda name: object())
    kind = SimpleNamespace(quantization_config={"quant_method": "awq"})
    check_loads(kind, "somewhere")
    assert method_of(kind) == "awq" and method_of(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("awq", ["tuner=dora"], r"tuner=dora: can not train on a checkpoint quantised by awq; use lora, oft"),
        (
            "gptq",
            ["tuner=full"],
            r"tuner=full: can not train on a checkpoint quantised by gptq; use lora, adalora, oft",
        ),
        ("gptq", ["tuner.init=pissa"], r"tuner\.init=pissa: needs the weights themselves, which gptq has rounded"),
        ("awq", ["tuner.init=loftq"], r"tuner\.init=loftq: needs the weights themselves, which awq has rounded"),
    ],
)
def test_tuners_without_a_layer_for_it_are_refused(make_config, method, overrides, message):
    model = nn.Module()
    model.config = SimpleNamespace(quantization_config=SimpleNamespace(quant_method=method))
    check_tuner(make_config("tuner=lora").tuner, model)
    with pytest.raises(UserError, match=message):
        check_tuner(make_config(*overrides).tuner, model)


def test_a_second_quantisation_is_refused(make_config, load_model):
    pytest.importorskip("bitsandbytes", reason="extra quant")
    import torch

    config = make_config("memory/quant=bnb4")
    model = load_model(config.model).model
    model.is_quantized = True
    with pytest.raises(
        UserError, match=r"memory/quant=bnb4: the checkpoint is quantised already; use memory/quant=none"
    ):
        registry.build("memory/quant", config.memory.quant, model, torch.device("cpu"))
