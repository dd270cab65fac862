import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.forward import supervised_logits
from harness.tuner.own_format import CONFIG, WEIGHTS, attach, is_own

REFT = ["tuner=reft", "tuner.prefix=2", "tuner.suffix=1", "tuner.layers=[0,2]"]


@pytest.fixture
def make_plain():
    base = registry._PACKAGE / "model" / "tiny_checkpoint"
    return lambda **options: Qwen3VLForConditionalGeneration.from_pretrained(base, **options)


@pytest.fixture
def make_trained(make_tuned):
    """Returns a tuner's result with random weights in what trains."""

    def make(*overrides):
        tuned = make_tuned(*overrides)
        with torch.no_grad():
            for parameter in tuned.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        return tuned

    return make


@pytest.mark.parametrize(
    "choice",
    [
        REFT,
        [*REFT, "tuner.intervention=noreft", "tuner.projection_bias=true"],
        [*REFT, "tuner.intervention=consreft"],
        [*REFT, "tuner.intervention=direft", "tuner.activation=gelu", "tuner.dropout=0.5"],
        ["tuner=reft", "freeze=vit", "freeze.full=[aligner]"],
        ["tuner=adapter", "freeze=none", "tuner.activation=silu", "tuner.places=[mlp]", "tuner.length=3"],
        ["tuner=adapter", "tuner.modules_to_save=[embed_tokens]"],
    ],
    ids=" ".join,
)
def test_attaches_to_a_plain_model_to_equal_logits(make_trained, make_plain, make_batch, tmp_path, choice):
    tuned, plain, batch = make_trained(*choice), make_plain(), make_batch(0, 1)
    with torch.no_grad():
        before = supervised_logits(plain, batch)
        expected = supervised_logits(tuned.base.eval(), batch)
    attach(plain, tuned.export(tmp_path))
    assert not any(parameter.requires_grad for name, parameter in plain.named_parameters() if name in tuned.adapter)
    with torch.no_grad():
        torch.testing.assert_close(supervised_logits(plain, batch), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=0.01)


def test_a_bfloat16_base_stays_one(make_trained, make_plain, make_batch, tmp_path):
    plain = make_plain(dtype=torch.bfloat16)
    attach(plain, make_trained(*REFT, "tuner.modules_to_save=[layers.3]").export(tmp_path))
    types = {name: p.dtype for name, p in plain.named_parameters()}
    assert {dtype for name, dtype in types.items() if ".intervention." not in name} == {torch.bfloat16}
    with torch.no_grad():
        assert supervised_logits(plain, make_batch(0)).isfinite().all()


def test_peft_refuses_it_and_says_what_to_call(make_trained, make_plain, tmp_path):
    folder = make_trained(*REFT).export(tmp_path)
    assert is_own(folder)
    with pytest.raises(KeyError, match=r"load it with harness\.tuner\.own_format\.attach"):
        PeftModel.from_pretrained(make_plain(), str(folder))


def test_a_folder_of_pefts_is_refused(make_tuned, make_plain, tmp_path):
    folder = make_tuned("tuner=lora").export(tmp_path)
    assert not is_own(folder)
    with pytest.raises(UserError, match=r"adapter: no adapter in the harness's own format; PeftModel\.from_pretrained"):
        attach(make_plain(), folder)
    with pytest.raises(UserError, match="no adapter in the harness's own format"):
        attach(make_plain(), tmp_path / "missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["tuner"].update(rank=5), r"intervention\.\S+ does not fit the model; it is an adapter of \S+tiny"),
        (
            lambda d: d["modules"].append("model.language_model.layers.4"),
            r"the model has no model\.lang\S+ers\.4; it is",
        ),
        (lambda d: d["tuner"].update(ranks=5), r"adapter_config\.json: ranks does not fit this version"),
        (lambda d: d["tuner"].update(rank=0), r"adapter_config\.json: tuner\.rank=0"),
        (lambda d: d["tuner"].update(name=[1]), r"adapter_config\.json: tuner\.name=\[1\]: known: adapter, reft"),
        (lambda d: d.pop("tuner"), r"adapter_config\.json: tuner\.name=None: known"),
        (lambda d: d.update(modules=3), r"adapter_config\.json: modules=3: not a list of names"),
    ],
)
def test_another_model_or_version_is_refused(make_trained, make_plain, tmp_path, change, message):
    folder = make_trained(*REFT).export(tmp_path)
    described = json.loads((folder / CONFIG).read_text())
    change(described)
    (folder / CONFIG).write_text(json.dumps(described))
    with pytest.raises(UserError, match=message):
        attach(make_plain(), folder)


def test_damaged_files_are_named_and_weights_that_are_absent(make_trained, make_plain, tmp_path):
    folder = make_trained(*REFT).export(tmp_path)
    weights = load_file(folder / WEIGHTS)
    first = min(weights)
    save_file({name: value for name, value in weights.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(UserError, match=rf"adapter_model\.safetensors: lacks {first}"):
        attach(make_plain(), folder)
    (folder / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged \("):
        attach(make_plain(), folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: damaged \("):
        attach(make_plain(), folder)
