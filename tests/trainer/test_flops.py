"""FLOPs worked out from the model against those that a profiler counts in the same step, and against the formula."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness import registry
from harness.data.collator import collate_packed
from harness.model import varlen, varlen_flops
from harness.model.attention import use_varlen
from harness.model.forward import supervised_loss
from harness.trainer.flops import survey
from harness.tuner import fused


@pytest.fixture(scope="session")
def packed(make_config, encoder):
    """Two packs of handwritten digits, in rows without filling."""
    rows = registry.build("data", make_config().data).train

    def loaded(index):
        return [encoder.load(sample) for sample in encoder.encode(rows[index])]

    packs = [[item for index in range(first, first + 4) for item in loaded(index)] for first in (0, 4)]
    return collate_packed(packs, encoder.text, encoder.pad_token_id, None)


@pytest.fixture
def counted(make_tuned, make_config, monkeypatch):
    """Counts a step by both; returns what the method needs, what is done, and what the profiler saw.

    Counts are of the operations of a GPU, where none is written out by hand.
    """
    for module in (varlen, fused):
        monkeypatch.setattr(module, "is_direct", lambda _: False)

    def count(batch, *overrides, attention="varlen"):
        tuned = make_tuned(f"model.attention={attention}", *overrides)
        tuned.model.train()
        registry.build("memory", make_config(*overrides).memory, tuned.base)
        needed, done = survey(tuned.base).of(batch)
        with FlopCounterMode(display=False) as counter:
            supervised_loss(tuned.base, batch).backward()
        return needed, done, counter.get_total_flops()

    return count


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("freeze", ["vit_aligner", "vit", "none", "llm", "llm_vit"])
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_profiler_counts_the_same(counted, packed, tuner, freeze, checkpointing):
    overrides = [f"tuner={tuner}", f"freeze={freeze}", f"memory.checkpointing={checkpointing}"]
    needed, done, seen = counted(packed, *overrides)
    assert done == pytest.approx(seen, rel=1e-3)
    # A block's second forward pass is about a third of a frozen block's work.
    assert done / needed == pytest.approx(1.0, abs=0.03) if checkpointing == "false" else done > 1.2 * needed


@pytest.mark.parametrize(
    "overrides",
    [
        ["tuner=adalora"],
        ["tuner=adapter"],
        ["tuner=bone"],
        ["tuner=dora", "tuner.dropout=0"],
        ["tuner=llamapro"],
        ["tuner=longlora"],
        ["tuner=lora", "freeze=vit", "tuner.modules_to_save=[visual.merger]"],
        ["tuner=lora", "freeze=vit", "freeze.full=[aligner]"],
        ["tuner=lora", "tuner.rank=4", "tuner.target_modules=[q_proj,down_proj]"],
        ["tuner=full", "freeze.trainable_regex=visual.blocks.3"],
        ["tuner=reft"],
    ],
    ids=" ".join,
)
def test_other_tuners_within_three_percent(counted, packed, overrides):
    _, done, seen = counted(packed, *overrides)
    assert done == pytest.approx(seen, rel=0.03)


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_padding_and_hidden_pairs_are_done_but_not_needed(counted, packed, make_batch, tuner):
    for batch in (packed, make_batch(0, 1, 2)):
        needed, done, seen = counted(batch, f"tuner={tuner}", attention="sdpa")
        assert done == pytest.approx(seen, rel=1e-3)
        assert needed == counted(batch, f"tuner={tuner}")[0]


def test_a_mixture_counts_the_experts_that_a_token_sees(make_config, make_batch, tmp_path):
    from transformers import AutoConfig, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    from harness.model.checkpoint_path import resolve

    tiny = AutoConfig.from_pretrained(resolve("harness:tiny")).to_dict()
    text = {**tiny["text_config"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sides = {"text_config": text, "vision_config": tiny["vision_config"]}
    for side in sides.values():
        side.pop("model_type")
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**sides, image_token_id=498)).requires_grad_(False)
    use_varlen(model)
    layer = model.model.language_model.layers[0]
    before = survey(model).needed.tokens
    layer.mlp.experts.requires_grad_(True)
    gate_up, down = 96 * 64, 32 * 96
    # Two experts' own gradients, the input's of `down`, and the backward pass of the three layers above.
    own = 2 * 2 * (gate_up + down) + 2 * 2 * down
    attention = 96 * (128 + 64 + 64) + 128 * 96
    above = 3 * 2 * (attention + 4 * 96 + 2 * (gate_up + down))
    assert survey(model).needed.tokens - before == own + above


def test_the_formula_of_a_frozen_4b_is_four_flops_a_weight(make_config):
    """Model FLOPs a token: 4 N under adapters that weigh nothing, 6 N where all trains."""
    from harness.model.loading import skeleton

    model = skeleton(make_config().model).requires_grad_(False)
    language = model.model.language_model
    weights = sum(p.numel() for name, p in language.layers.named_parameters() if "norm" not in name)
    assert survey(model).needed.tokens == 2 * weights
    language.embed_tokens.requires_grad_(True)
    assert survey(model).needed.tokens == 4 * weights
    language.requires_grad_(True)
    costs = survey(model)
    assert costs.needed.tokens == 6 * weights
    assert costs.needed.pairs == 4 * 12 * 4 * 32
    assert costs.needed.frame_pairs == 4 * 4 * 64


def test_the_collator_counts_pairs(packed, make_batch):
    lengths = packed.cu_seqlens.diff()
    assert packed.num_pairs == int((lengths * (lengths + 1) // 2).sum())
    assert packed.num_frame_pairs == 8 * 16**2
    assert make_batch(0).num_frame_pairs == int(make_batch(0).grid_thw.prod()) ** 2


def test_a_batch_of_text_costs_no_vision(make_tuned, packed):
    import dataclasses

    costs = survey(make_tuned("tuner=lora").base)
    text = dataclasses.replace(packed, pixel_values=None)
    vision = costs.needed.patches * len(packed.pixel_values) + costs.needed.visual * packed.num_visual
    assert costs.of(packed)[0] - costs.of(text)[0] == pytest.approx(vision + costs.needed.frame_pairs * 8 * 256)


def test_formulas_count_pairs_within_samples():
    starts = torch.tensor([0, 3, 10])
    q = torch.zeros(10, 4, 8)
    assert varlen_flops.forward(q, q, q, starts, 7, 1.0, True) == 4 * (6 + 28) * 32
    assert varlen_flops.forward(q, q, q, starts, 7, 1.0, False) == 4 * (9 + 49) * 32
    assert varlen_flops.backward(q, q, q, q, q, q, starts, 7, 1.0, True) == 10 * (6 + 28) * 32
