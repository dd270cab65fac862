"""Loading any Qwen3-VL checkpoint: dense and mixture of experts, and what is refused."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.attention import pick_attention
from harness.model.loading import load, skeleton
from harness.model.processor import load_processor
from harness.model.qwen3_vl import Attention


def test_a_skeleton_has_the_names_and_shapes_and_no_weights(make_config):
    config = make_config().model
    bare = dict(skeleton(config).named_parameters())
    assert {p.device.type for p in bare.values()} == {"meta"}
    whole = {name: p.shape for name, p in load(config).model.named_parameters()}
    # The patch embedding becomes a matrix once there are weights.
    assert set(bare) == set(whole)


def test_loads_frozen_and_in_the_asked_type(make_config):
    model = load(make_config("model.dtype=bfloat16").model).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not [name for name, p in model.named_parameters() if p.requires_grad]


def test_loads_a_mixture_of_experts_and_puts_adapters_in(tmp_path, make_config, outlook, caplog):
    tiny = json.loads((registry._PACKAGE / "model" / "tiny_checkpoint" / "config.json").read_text())
    text = {**tiny.pop("text_config"), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text.pop("model_type")
    vision = {key: value for key, value in tiny.pop("vision_config").items() if key != "model_type"}
    keep = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **{key: tiny[key] for key in keep})
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path)
    run = make_config(f"model.path={tmp_path}")
    loaded = load(run.model)
    tuned = registry.build("tuner", run.tuner, loaded, registry.build("freeze", run.freeze, loaded.model), outlook)
    trained = [name for name, p in tuned.model.named_parameters() if p.requires_grad]
    assert any("self_attn.q_proj.lora_B" in name for name in trained)
    assert not any("experts" in name for name in trained)
    assert "tuner: experts get no adapter: model.language_model.layers.0.mlp.experts.down_proj" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=Qwen/nothing-of-this-name", "neither a folder nor a hub id that can be reached"),
        ("model.revision=main", "is a folder, which has no revisions"),
    ],
)
def test_what_can_not_be_loaded_is_refused(make_config, monkeypatch, override, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        load(make_config(override).model)


def test_missing_attention_package_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.attention=flash_attention_2: .*pip install"):
        pick_attention(Attention.flash_attention_2, torch.bfloat16)
    assert pick_attention(Attention.auto, torch.float32) == "varlen"


def test_saved_processor_keeps_the_pixel_budget(tmp_path, make_config):
    processor = load_processor(make_config().model)
    processor.image_processor.size = {"shortest_edge": 2048, "longest_edge": 4096}
    processor.save(tmp_path)
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    again = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (again.size["shortest_edge"], again.size["longest_edge"]) == (2048, 4096)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == processor.tokenizer.chat_template


@pytest.fixture
def checkpoint(tmp_path, make_config):
    """A copy of the tiny checkpoint, to be damaged."""
    folder = tmp_path / "checkpoint"
    load(make_config().model).model.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    """Changes the dict of weights in a checkpoint."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tied_head_need_not_be_in_the_file(checkpoint, make_config):
    assert "lm_head.weight" not in load_file(checkpoint / "model.safetensors")
    model = load(make_config(f"model.path={checkpoint}").model).model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    shipped = load(make_config().model).model
    torch.testing.assert_close(model.lm_head.weight, shipped.lm_head.weight, atol=0, rtol=0)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, make_config):
    """transformers fills them with random numbers and warns."""
    absent = ["model.visual.merger.norm.weight", "model.language_model.layers.0.mlp.up_proj.weight"]
    rewrite(checkpoint, lambda weights: [weights.pop(name) for name in absent])
    with pytest.raises(UserError, match=rf"lacks 2 of the model's weights, {re.escape(absent[1])} among them"):
        load(make_config(f"model.path={checkpoint}").model)


def test_a_weight_of_another_shape_is_refused(checkpoint, make_config):
    name = "model.language_model.norm.weight"
    rewrite(checkpoint, lambda weights: weights.update({name: torch.ones(3)}))
    with pytest.raises(UserError, match=rf"lacks 1 of the model's weights, {re.escape(name)} among them"):
        load(make_config(f"model.path={checkpoint}").model)


@pytest.mark.parametrize("num_bytes", [0, 4, 100_000], ids=["empty", "no header", "half"])
def test_a_truncated_file_of_weights_is_refused(checkpoint, make_config, num_bytes):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=rf"model\.path={checkpoint}: its weights can not be read \(.+\)"):
        load(make_config(f"model.path={checkpoint}").model)


def test_a_folder_without_weights_is_refused(checkpoint, make_config):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"its weights can not be read \(.*model\.safetensors"):
        load(make_config(f"model.path={checkpoint}").model)
