"""Start, export and types: see test_contract.py, too; sparse attention itself: tests/model/test_shifted_sparse.py."""

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.component import strip_peft
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.longlora import LongloraConfig

CHECKPOINT = registry._PACKAGE / "model" / "tiny_checkpoint"
LANGUAGE = "model.language_model."


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return supervised_logits(model, batch)


def train(tuned, batch, steps=2):
    tuned.model.train()
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
        optimizer.step()


def trained(tuned):
    return {strip_peft(name): p for name, p in tuned.model.named_parameters() if p.requires_grad}


def own(tuned):
    return {name for name in trained(tuned) if ".lora_" not in name}


@pytest.mark.parametrize(
    ("embeddings", "norms", "count"),
    [("false", "false", 0), ("true", "false", 512 * 96), ("false", "true", 4 * (2 * 96 + 2 * 32) + 96)],
)
def test_trains_attention_adapters_embeddings_and_norms(make_tuned, embeddings, norms, count):
    """Rank 8 on q, k, v, o: 8 (in + out) each, of 96 -> 128, 64, 64 and 128 -> 96; sizes from config.json."""
    keys = [f"tuner.train_embeddings={embeddings}", f"tuner.train_norms={norms}"]
    tuned = make_tuned("tuner=longlora", *keys)
    lora = 4 * 8 * (2 * (96 + 128) + 2 * (96 + 64))
    assert sum(p.numel() for p in trained(tuned).values()) == lora + count
    assert {name.split(".")[5] for name in trained(tuned) if ".lora_" in name} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }


def test_the_papers_trainable_weights_are_the_default(make_tuned):
    tuned = make_tuned("tuner=longlora")
    norms = [f"layers.{n}.{leaf}" for n in range(4) for leaf in ("input_layernorm", "post_attention_layernorm")]
    norms += [f"layers.{n}.self_attn.{leaf}" for n in range(4) for leaf in ("q_norm", "k_norm")]
    assert own(tuned) == {f"{LANGUAGE}{name}.weight" for name in [*norms, "norm", "embed_tokens"]}
    assert tuned.base.lm_head.weight is tuned.base.model.language_model.embed_tokens.weight


def test_trains_with_sparse_and_evaluates_with_full_attention(make_tuned, make_batch):
    sparse, full = make_tuned("tuner=longlora"), make_tuned("tuner=longlora", "tuner.group_ratio=1")
    batch, losses = make_batch(0, 1), {}
    for name, tuned in (("sparse", sparse), ("full", full)):
        for mode in (True, False):
            tuned.model.train(mode)
            for module in tuned.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
            losses[name, mode] = loss_sum(supervised_logits(tuned.base, batch), batch).item()
    assert losses["full", True] == pytest.approx(losses["full", False], rel=1e-5)
    assert losses["sparse", False] == losses["full", False] and losses["sparse", True] != losses["full", True]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_export_is_the_trained_model(make_tuned, make_batch, tmp_path, dtype):
    """With the mergers trained in full beside, which PEFT wraps; after export the model is as it was."""
    freeze = ["freeze=component", "freeze.frozen=[vit]", "freeze.full=[aligner]"]
    tuned, batch = make_tuned("tuner=longlora", *freeze, f"model.dtype={dtype}"), make_batch(4, 5)
    before = {name: p.detach().clone() for name, p in tuned.model.named_parameters()}
    mixed = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": dtype == "bfloat16", "cache_enabled": False}
    with torch.autocast(**mixed):
        train(tuned, make_batch(0, 1, 2, 3))
        expected = logits(tuned.base, batch)
    changed = {strip_peft(n) for n, p in tuned.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained(tuned).keys() and any("merger" in name for name in changed)
    folder = tuned.export(tmp_path)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert folder.name == "model" and {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.3, "rtol": 0.05}
    torch.testing.assert_close(logits(model, batch), expected.float(), **close)


def test_adapters_alone_are_exported_in_pefts_format(make_tuned, make_batch, tmp_path):
    tuned, batch = (
        make_tuned("tuner=longlora", "tuner.train_embeddings=false", "tuner.train_norms=false"),
        make_batch(4),
    )
    train(tuned, make_batch(0, 1, 2, 3))
    folder = tuned.export(tmp_path)
    model = PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT), str(folder))
    expected = logits(tuned.base, batch)
    torch.testing.assert_close(logits(model.base_model.model, batch), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model.merge_and_unload(), batch), expected, atol=1e-4, rtol=1e-4)


def test_embeddings_and_norms_follow_the_freeze_policy(make_tuned):
    prefix = f"{LANGUAGE}layers.0"
    tuned = make_tuned("tuner=longlora", "freeze=prefix", f"freeze.prefixes=[{prefix}]")
    assert own(tuned) and not any(name.startswith(prefix) for name in trained(tuned))


def test_a_pattern_replaces_the_default_targets(make_tuned):
    tuned = make_tuned("tuner=longlora", r"tuner.target_regex='.*layers\.3\.mlp\.up_proj'")
    adapted = {name.partition(".lora_")[0] for name in trained(tuned) if ".lora_" in name}
    assert adapted == {f"{LANGUAGE}layers.3.mlp.up_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_ratio": 0.0}, r"tuner\.group_ratio=0\.0"),
        ({"group_ratio": 1.5}, r"tuner\.group_ratio=1\.5"),
        ({"group_size": 1}, r"tuner\.group_size=1"),
        ({"group_size": 64, "group_ratio": 0.5}, r"tuner\.group_size=64: .*give one"),
        ({"rank": 0}, r"tuner\.rank=0"),
        ({"target_regex": ".*q_proj", "target_modules": ["k_proj"]}, r"tuner\.target_regex"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LongloraConfig(**settings)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["freeze=llm"], r"tuner\.train_embeddings=true: .*frozen"),
        (["freeze=prefix"], r"tuner\.train_embeddings=true: .*frozen"),
        (["freeze=regex", "freeze.regex=norm"], r"tuner\.train_norms=true: .*frozen"),
        (["tuner.modules_to_save=[embed_tokens]"], r"tuner\.modules_to_save=.*embed_tokens: trains by"),
        (["tuner.modules_to_save=[lm_head]"], r"tuner\.modules_to_save=.*embed_tokens: trains by"),
        (["freeze=none", "tuner.target_modules=[attn.qkv]"], r"tuner\.target_modules=.*gets none there"),
        (["model.attention=eager"], r"model\.attention=eager"),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_what_can_not_take_effect_is_refused(make_tuned, choice, message):
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=longlora", *choice)
