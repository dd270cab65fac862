"""Loading any Qwen3-VL checkpoint: dense and mixture of experts, and what is refused."""

import json

import pytest
import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.loading import load, pick_attention
from harness.model.processor import load_processor
from harness.model.qwen3_vl import Attention


def test_loads_frozen_and_in_the_asked_type(make_config):
    model = load(make_config("model.dtype=bfloat16").model).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not [name for name, p in model.named_parameters() if p.requires_grad]


def test_loads_a_mixture_of_experts_and_puts_adapters_in(tmp_path, make_config):
    tiny = json.loads((registry._PACKAGE / "model" / "tiny_checkpoint" / "config.json").read_text())
    text = {**tiny.pop("text_config"), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text.pop("model_type")
    vision = {key: value for key, value in tiny.pop("vision_config").items() if key != "model_type"}
    keep = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **{key: tiny[key] for key in keep})
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path)
    run = make_config(f"model.path={tmp_path}")
    tuned = registry.build("tuner", run.tuner, load(run.model), registry.build("freeze", run.freeze))
    trained = [name for name, p in tuned.model.named_parameters() if p.requires_grad]
    assert any("self_attn.q_proj.lora_B" in name for name in trained)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=Qwen/nothing-of-this-name", "neither a folder nor a hub id that can be reached"),
        ("model.revision=main", "is a folder, which has no revisions"),
    ],
)
def test_what_can_not_be_loaded_is_refused(make_config, monkeypatch, override, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        load(make_config(override).model)


def test_missing_attention_package_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.attention=flash_attention_2: .*pip install"):
        pick_attention(Attention.flash_attention_2)
    assert pick_attention(Attention.auto) == "sdpa"


def test_saved_processor_keeps_the_pixel_budget(tmp_path, make_config):
    processor = load_processor(make_config().model)
    processor.image_processor.size = {"shortest_edge": 2048, "longest_edge": 4096}
    processor.save(tmp_path)
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    again = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    assert (again.size["shortest_edge"], again.size["longest_edge"]) == (2048, 4096)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == processor.tokenizer.chat_template
