"""Every tuner in every precision, layout and memory setting: it learns, and changes what it trains alone."""

import copy
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.data.collator import collate, collate_packed
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.own_format import attach, is_own

pytestmark = pytest.mark.slow
registry.load()
TUNERS = registry.names("tuner")
SETTINGS = list(product(("float32", "bfloat16"), (False, True), (False, True)))
STEPS = 60
ROWS = 4
BATCHES = 4


def name_of(setting):
    dtype, packed, checkpointing = setting
    return f"{dtype}-{'packed' if packed else 'padded'}-{'checkpointing' if checkpointing else 'plain'}"


@pytest.fixture(scope="module")
def make_batches(make_config, encoder):
    rows = registry.build("data", make_config().data).train

    def make(packed: bool):
        batches = []
        for first in range(0, ROWS * BATCHES, ROWS):
            loaded = [encoder.load(encoder.encode(rows[first + i])[0]) for i in range(ROWS)]
            if packed:
                batch = collate_packed([loaded[:2], loaded[2:]], encoder.text, encoder.pad_token_id, None)
            else:
                batch = collate(loaded, encoder.text, encoder.pad_token_id)
            batches.append(batch)
        return batches

    return make


def mean_loss(tuned, batch, dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        return loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised


@dataclass
class Reloaded:
    """What an export loads to, in the place of what was trained."""

    base: torch.nn.Module

    @property
    def model(self):
        return self.base


def load_export(folder, dtype):
    plain = Qwen3VLForConditionalGeneration.from_pretrained
    tiny = registry._PACKAGE / "model" / "tiny_checkpoint"
    if folder.name == "model":
        return plain(folder, dtype=getattr(torch, dtype))
    model = plain(tiny, dtype=getattr(torch, dtype))
    if is_own(folder):
        attach(model, folder)
        return model
    return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).base_model.model


def evaluate(tuned, batches, dtype):
    tuned.model.eval()
    with torch.no_grad():
        loss = sum(mean_loss(tuned, batch, dtype).item() for batch in batches) / len(batches)
    tuned.model.train()
    return loss


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
@pytest.mark.parametrize("tuner", TUNERS)
def test_starts_learns_changes_what_it_trains_and_comes_back(
    make_tuned, make_config, make_batches, outlook, tmp_path, tuner, setting
):
    """It starts as the base; the loss falls by half in 60 steps; frozen weights stay bit for bit; the export loads to
    the same loss; the image matters."""
    dtype, packed, checkpointing = setting
    overrides = [
        f"tuner={tuner}",
        *OVERRIDES.get(tuner, []),
        f"model.dtype={dtype}",
        f"memory.checkpointing={str(checkpointing).lower()}",
    ]
    tuned, batches = make_tuned(*overrides), make_batches(packed)
    registry.build("memory", make_config(*overrides).memory, tuned.base)
    frozen = {name: p.detach().clone() for name, p in tuned.model.named_parameters() if not p.requires_grad}
    trained = [p for p in tuned.model.parameters() if p.requires_grad]
    start = evaluate(tuned, batches, dtype)
    if tuner not in RANDOM_START:
        base = make_tuned("tuner=full", f"model.dtype={dtype}")
        assert start == pytest.approx(evaluate(base, batches, dtype), rel=1e-4 if dtype == "float32" else 0.05)
    # Methods differ in the size of a good step by orders of magnitude; ten times the default is a short run's.
    optimizer = torch.optim.Adam(trained, lr=RATES.get(tuner, 10 * tuned.default_lr))
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = mean_loss(tuned, batches[step % BATCHES], dtype)
        (loss if tuned.regularizer is None else loss + tuned.regularizer()).backward()
        optimizer.step()
        if tuned.after_step is not None and step <= outlook.total_steps:
            tuned.after_step(step)
        if step % BATCHES == 0 and evaluate(tuned, batches, dtype) < start / 2:
            break
    assert evaluate(tuned, batches, dtype) < start / 2
    now = dict(tuned.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    reloaded = Reloaded(load_export(tuned.export(tmp_path), dtype))
    expected = evaluate(tuned, batches, dtype)
    assert evaluate(reloaded, batches, dtype) == pytest.approx(expected, rel=1e-4 if dtype == "float32" else 0.1)
    blank = copy.copy(batches[0])
    blank.pixel_values = torch.zeros_like(blank.pixel_values)
    assert evaluate(tuned, [blank], dtype) != pytest.approx(evaluate(tuned, batches[:1], dtype), rel=1e-3)


RANDOM_START = {"reft"}
"""Tuners that start at random as in their paper; test_contract.py has more."""
OVERRIDES = {"longlora": ["tuner.group_size=64"]}
"""In smaller groups the answers of these samples of 23 tokens do not see their images in training."""
RATES = {"lora": 3e-3, "dora": 3e-3, "full": 1e-3, "vera": 3e-2, "adalora": 3e-2}
"""Learning rates of methods for which ten times the default is not enough for 60 steps."""
