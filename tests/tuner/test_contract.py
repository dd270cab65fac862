"""What every tuner has to keep, whatever its method; a new tuner is tested by being registered."""

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.own_format import attach, is_own

registry.load()
TUNERS = registry.names("tuner")
VARIANTS = [
    ["tuner=lora", "tuner.init=pissa"],
    ["tuner=lora", "tuner.init=pissa_niter_4"],
    ["tuner=lora", "tuner.init=olora"],
    ["tuner=lora", "tuner.init=gaussian"],
    ["tuner=lora", "tuner.rslora=true", "tuner.init=pissa"],
    ["tuner=lora", "tuner.bias=all", "freeze=none"],
    ["tuner=lora", "tuner.init=orthogonal"],
    ["tuner=lora", "tuner.init=eva", "tuner.eva.batches=2"],
    ["tuner=lora", "tuner.init=corda", "tuner.corda.batches=2", "tuner.bias=all", "freeze=none"],
    ["tuner=lora", "tuner.init=lora_ga"],
    ["tuner=lora", "tuner.init=lora_ga", "tuner.rslora=true", "tuner.rank_pattern={q_proj: 4}", "freeze=none"],
    ["tuner=lora", "tuner.rank_pattern={q_proj: 4}", "tuner.alpha_pattern={up_proj: 8}", "tuner.init=olora"],
    ["tuner=lora", "tuner.layers_to_transform=[0,3]"],
    ["tuner=lora", "tuner.modules_to_save=[lm_head]"],
    ["tuner=lora", "tuner.modules_to_save=[language_model.norm,visual.merger]", "freeze=vit"],
    ["tuner=lora", "freeze.frozen=[vit]", "freeze.full=[aligner]"],
    ["tuner=lora", "freeze.frozen=[]", "freeze.full=[aligner,vit]", "tuner.init=lora_ga"],
    ["tuner=lora", "freeze.frozen=[]", "freeze.full=[llm]"],
    ["tuner=dora", "freeze.frozen=[vit]", "freeze.full=[aligner]"],
    ["tuner=dora", "tuner.layers_to_transform=[1]", "tuner.rank_pattern={q_proj: 4}"],
    ["tuner=dora", "freeze=none"],
]
CHOICES = [[f"tuner={name}"] for name in TUNERS] + [pytest.param(item, marks=pytest.mark.slow) for item in VARIANTS]
LLM_ONLY = {
    ("reft", "llm"): "tuner=reft: edits the LLM",
    ("reft", "aligner"): "tuner=reft: edits the LLM alone",
    ("llamapro", "llm"): "freeze",
    ("llamapro", "aligner"): "freeze",
    ("longlora", "llm"): "tuner=longlora|tuner.target_modules|tuner.train_embeddings",
    ("longlora", "aligner"): None,
}
"""Methods for the LLM alone, and what they say under a policy that leaves them other components; longlora's default
targets are names that the ViT does not have."""
FREEZE = [
    [f"tuner={name}", f"freeze={policy}"]
    for name in TUNERS
    for policy in ("llm", "aligner")
    if (name, policy) not in LLM_ONLY
]
RANDOM_START = {"reft"}
"""The authors start ReFT at random: it changes the model a little; tuner.start=identity is there."""


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_says_whether_it_reads_gradients(make_tuned, name):
    reads = getattr(registry.get("tuner", name).config, "reads_gradients", False)
    assert (make_tuned(f"tuner={name}").after_step is not None) == reads


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return supervised_logits(getattr(getattr(model, "base_model", model), "model", model), batch)


def base_logits(make_tuned, batch):
    tuned = make_tuned("tuner=full")
    tuned.model.eval()
    with torch.no_grad():
        return supervised_logits(tuned.base, batch)


def take_steps(tuned, batch, steps=2):
    tuned.model.train()
    trained = [p for p in tuned.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised).backward()
        optimizer.step()


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_starts_as_the_base_model(make_tuned, make_batch, choice):
    if any(f"tuner={name}" in choice for name in RANDOM_START):
        choice = [*choice, "tuner.start=identity"]
    tuned, batch = make_tuned(*choice), make_batch(0, 1)
    tuned.model.eval()
    with torch.no_grad():
        ours = supervised_logits(tuned.base, batch)
    torch.testing.assert_close(ours, base_logits(make_tuned, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_training_changes_what_is_trainable_and_nothing_else(make_tuned, make_batch, choice):
    tuned = make_tuned(*choice)
    before = {name: p.detach().clone() for name, p in tuned.model.named_parameters()}
    take_steps(tuned, make_batch(0, 1, 2, 3))
    for name, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None and torch.equal(parameter, before[name]), f"{name} is frozen and changed"
    # Rows of the embedding that no sample uses, and A while B is zero, may stand still; most must move.
    moved = [n for n, p in tuned.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * sum(p.requires_grad for p in tuned.model.parameters())


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_export_loads_with_plain_libraries_to_equal_logits(make_tuned, make_batch, tmp_path, choice):
    tuned, batch = make_tuned(*choice), make_batch(4, 5)
    take_steps(tuned, make_batch(0, 1, 2, 3))
    tuned.model.eval()
    with torch.no_grad():
        expected = supervised_logits(tuned.base, batch)
    folder = tuned.export(tmp_path)
    base = str(registry._PACKAGE / "model" / "tiny_checkpoint")
    if folder.name == "model":
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    elif is_own(folder):
        # These can not be merged: what they add is no linear map of a weight's input.
        model = Qwen3VLForConditionalGeneration.from_pretrained(base)
        attach(model, folder)
    else:
        model = PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(base), str(folder))
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
        model = model.merge_and_unload()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(supervised_logits(model, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", CHOICES, ids=" ".join)
def test_trained_weights_are_float32_whatever_the_base(make_tuned, choice):
    tuned = make_tuned(*choice, "model.dtype=bfloat16")
    types = {p.dtype for p in tuned.model.parameters() if p.requires_grad}
    # Biases stay as their layer has them.
    assert types - {torch.bfloat16} == {torch.float32} and ("tuner.bias=all" in choice or len(types) == 1)


@pytest.mark.parametrize("choice", CHOICES + FREEZE, ids=" ".join)
def test_nothing_trains_in_a_frozen_component(make_config, make_tuned, choice):
    named = make_tuned(*choice).model.named_parameters()
    trained = {component_of(name) for name, parameter in named if parameter.requires_grad}
    assert trained == set(Component) - set(make_config(*choice).freeze.frozen)


@pytest.mark.parametrize(("choice", "message"), [item for item in LLM_ONLY.items() if item[1] is not None])
def test_methods_for_the_llm_refuse_a_policy_that_leaves_them_other_components(make_tuned, choice, message):
    with pytest.raises(UserError, match=message):
        make_tuned(f"tuner={choice[0]}", f"freeze={choice[1]}")
