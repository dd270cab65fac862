"""Identity at the start, what trains, the trained weights' type and the export: see test_contract.py, too."""

import json

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.llamapro import LlamaproConfig, _places

CHECKPOINT = registry._PACKAGE / "model" / "tiny_checkpoint"
LAYERS = "model.language_model.layers"


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return supervised_logits(model, batch)


def stock_logits(model, batch):
    """Transformers' own forward pass, which adds visual features by the number of a layer."""
    tokens = batch.input_ids
    kinds = (tokens == model.config.image_token_id).int()
    with torch.no_grad():
        out = model.eval()(
            input_ids=tokens,
            attention_mask=batch.attention_mask,
            mm_token_type_ids=kinds,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.grid_thw,
        )
    return out.logits.flatten(0, 1)[batch.target_index]


def train(tuned, batch, steps=2):
    tuned.model.train()
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
        optimizer.step()


@pytest.fixture
def moe_folder(tmp_path):
    """The tiny checkpoint as a mixture of experts, with random weights."""
    tiny = json.loads((CHECKPOINT / "config.json").read_text())
    text = {**tiny.pop("text_config"), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    keep = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLMoeConfig(
        text_config=text | {"model_type": "qwen3_vl_moe_text"},
        vision_config=tiny["vision_config"] | {"model_type": "qwen3_vl_moe_vision"},
        **{key: tiny[key] for key in keep},
    )
    torch.manual_seed(3)
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(tmp_path / "moe")
    return tmp_path / "moe"


@pytest.mark.parametrize("choice", [[], ["tuner.num_groups=1"], ["tuner.num_new_blocks=2"]], ids=" ".join)
def test_the_deeper_model_is_the_old_one_bit_for_bit(make_tuned, make_batch, choice):
    tuned, batch = make_tuned("tuner=llamapro", *choice), make_batch(0, 1)
    base = make_tuned("tuner=full").base
    assert batch.num_visual and len(tuned.base.model.language_model.layers) > 4
    assert torch.equal(logits(tuned.base, batch), logits(base, batch))
    assert torch.equal(stock_logits(tuned.base, batch), stock_logits(base, batch))


def test_a_block_among_the_deepstack_levels_would_change_the_model(make_tuned, make_batch):
    """The trap: on four layers, groups of two end behind layer 1, and the third level would enter too early."""
    from harness.tuner.block_expansion import expand

    base, batch = Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT), make_batch(0, 1)
    expected = stock_logits(base, batch)
    expand(base, [1, 3])
    assert (stock_logits(base, batch) - expected).abs().max() > 0.1


def test_new_blocks_are_copies_with_outputs_at_zero(make_tuned):
    tuned = make_tuned("tuner=llamapro", "tuner.num_new_blocks=2")
    layers = tuned.base.model.language_model.layers
    # Behind layer 1 none may stand, so that the first group ends with layer 2.
    for old, new in ((layers[2], layers[3]), (layers[4], layers[5])):
        for (name, a), (_, b) in zip(old.named_parameters(), new.named_parameters(), strict=True):
            ends = name.endswith(("o_proj.weight", "down_proj.weight"))
            assert not b.any() if ends else torch.equal(a, b), name
            assert b.requires_grad and not a.requires_grad
    assert tuned.adapter == {f"{LAYERS}.{n}.{name}" for n in (3, 5) for name, _ in layers[0].named_parameters()}


def test_trains_as_many_weights_as_the_new_blocks_have(make_tuned):
    """96 wide, 4 heads and 2 of keys and values, 32 each, MLP of 192; norms 2 x 96 and 2 x 32 (config.json)."""
    block = 96 * 128 * 2 + 96 * 64 * 2 + 3 * 96 * 192 + 2 * 96 + 2 * 32
    for number in (1, 4):
        tuned = make_tuned("tuner=llamapro", f"tuner.num_new_blocks={number}")
        trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
        assert sum(p.numel() for p in trained.values()) == number * block
        assert trained.keys() == tuned.adapter


@pytest.mark.parametrize(
    ("layers", "levels", "blocks", "groups", "behind"),
    [
        (36, 3, 4, None, [8, 17, 26, 35]),
        (32, 0, 8, None, [3, 7, 11, 15, 19, 23, 27, 31]),
        (28, 3, 4, 2, [13, 13, 27, 27]),
        (4, 3, 4, None, [2, 2, 2, 3]),
    ],
)
def test_places_are_those_of_the_paper_behind_the_deepstack_levels(layers, levels, blocks, groups, behind):
    """The second row is the paper's: 8 blocks in a model of 32 layers, without visual features."""
    assert _places(LlamaproConfig(num_new_blocks=blocks, num_groups=groups), layers, levels) == behind


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_trained_export_is_the_same_in_stock_transformers(make_tuned, make_batch, tmp_path, attention):
    tuned, batch = make_tuned("tuner=llamapro", f"model.attention={attention}"), make_batch(4, 5)
    before = logits(tuned.base, batch)
    train(tuned, make_batch(0, 1, 2, 3))
    expected = logits(tuned.base, batch)
    assert (expected - before).abs().max() > 0.1
    model = Qwen3VLForConditionalGeneration.from_pretrained(tuned.export(tmp_path))
    assert model.config.text_config.num_hidden_layers == len(model.model.language_model.layers) == 8
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    torch.testing.assert_close(stock_logits(model, batch), expected, atol=1e-4, rtol=1e-4)


def test_a_cache_of_keys_holds_each_layer_once(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=llamapro"), make_batch(0)
    train(tuned, make_batch(0, 1, 2, 3))
    model = tuned.base.eval()
    assert [layer.self_attn.layer_idx for layer in model.model.language_model.layers] == list(range(8))
    prompt = {"input_ids": batch.input_ids, "mm_token_type_ids": (batch.input_ids == 498).int()}
    prompt |= {"pixel_values": batch.pixel_values, "image_grid_thw": batch.grid_thw, "do_sample": False}
    with_cache, without = (
        model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, use_cache=cached, eos_token_id=[511])
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_export_has_the_type_of_the_base(make_tuned, make_batch, tmp_path):
    folder = make_tuned("tuner=llamapro", "model.dtype=bfloat16").export(tmp_path)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_checkpointing_gives_the_same_gradients(make_config, make_tuned, make_batch):
    gradients = []
    for checkpointing in ("false", "true"):
        tuned = make_tuned("tuner=llamapro", "tuner.num_new_blocks=2")
        memory = make_config(f"memory.checkpointing={checkpointing}", "memory.vit_checkpointing=false").memory
        registry.build("memory", memory, tuned.base)
        train(tuned, make_batch(0, 1))
        gradients.append({name: p.grad for name, p in tuned.model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert all(gradient.any() for name, gradient in gradients[0].items() if "proj" in name)


def test_the_aligner_may_train_in_full_beside(make_tuned, make_batch):
    freeze = ["freeze=component", "freeze.frozen=[vit]", "freeze.full=[aligner]"]
    tuned = make_tuned("tuner=llamapro", *freeze, "model.dtype=bfloat16")
    trained = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    aligner = {name for name in trained if "merger" in name}
    assert aligner and trained.keys() == aligner | tuned.adapter
    assert {p.dtype for p in trained.values()} == {torch.float32}


def test_a_mixture_of_experts_grows_too(make_tuned, make_batch, moe_folder, tmp_path):
    tuned, batch = make_tuned("tuner=llamapro", f"model.path={moe_folder}"), make_batch(0, 1)
    base = Qwen3VLMoeForConditionalGeneration.from_pretrained(moe_folder)
    torch.testing.assert_close(logits(tuned.base, batch), logits(base, batch), atol=1e-5, rtol=1e-5)
    train(tuned, batch)
    expected = logits(tuned.base, batch)
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(tuned.export(tmp_path))
    torch.testing.assert_close(stock_logits(model, batch), expected, atol=1e-4, rtol=1e-4)


def test_layers_that_differ_by_number_are_refused(make_tuned, moe_folder):
    config = json.loads((moe_folder / "config.json").read_text())
    config["text_config"]["decoder_sparse_step"] = 2
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**config))
    model.save_pretrained(moe_folder)
    with pytest.raises(UserError, match="decoder_sparse_step"):
        make_tuned("tuner=llamapro", f"model.path={moe_folder}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_new_blocks": 0}, r"tuner\.num_new_blocks=0"),
        ({"num_groups": 0}, r"tuner\.num_groups=0"),
        ({"num_groups": 3}, r"tuner\.num_groups=3: .*tuner\.num_new_blocks=4"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LlamaproConfig(**settings)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["tuner.num_new_blocks=3"], r"tuner\.num_groups=3: does not divide the 4 layers of the LLM; set one of \[1\]"),
        (["tuner.num_new_blocks=6"], r"tuner\.num_groups=6: .*set one of \[1, 2\]"),
        (["freeze=llm"], r"leave all of it free"),
        (["freeze=prefix", "freeze.prefixes=[model.language_model.layers.0]"], r"leave all of it free"),
        (["freeze=none"], r"freeze=aligner, vit free: .*freeze=vit_aligner"),
        (["freeze.full=[llm]"], r"freeze\.full=llm"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_what_can_not_take_effect_is_refused(make_tuned, choice, message):
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=llamapro", *choice)


def test_an_optimiser_of_the_models_own_weights_is_refused(make_config):
    """`is_full` is what lisa and galore ask for."""
    assert not getattr(make_config("tuner=llamapro").tuner, "is_full", False)
