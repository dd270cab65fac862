"""What trains itself beside an adapter: `tuner.modules_to_save`, `freeze.full`."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.optim.group import learning_rates, parameter_groups
from harness.tuner.peft_adapter import base_name

TINY = str(registry._PACKAGE / "model" / "tiny_checkpoint")
MIXED = ("freeze.frozen=[vit]", "freeze.full=[aligner]")


def own_weights(tuned):
    """Returns what trains of the model's own, by its name in the base model."""
    named = tuned.model.named_parameters()
    return {base_name(name): p for name, p in named if p.requires_grad and name not in tuned.adapter}


@pytest.mark.parametrize("component", Component)
def test_a_component_that_trains_in_full_trains_all_of_it(make_tuned, component):
    full = [f"freeze.full=[{component.name}]", "freeze.frozen=[]"]
    expected = {name for name, _ in make_tuned("tuner=full").base.named_parameters() if component_of(name) is component}
    tuned = make_tuned(*full)
    assert own_weights(tuned).keys() == expected
    assert {component_of(name) for name in tuned.adapter} == set(Component) - {component}


def test_a_component_in_full_has_the_rates_of_its_component(make_config, make_tuned):
    tuned, config = make_tuned(*MIXED, "tuner.lora_plus_ratio=4"), make_config(*MIXED, "optim.aligner_lr=3e-5")
    groups = parameter_groups(tuned.model, config.optim, tuned.default_lr, tuned.lr_scales)
    assert learning_rates(groups) == pytest.approx({"llm": 1e-4, "llm_x4": 4e-4, "aligner": 3e-5})


def test_what_freezes_single_weights_holds_in_a_component_in_full(make_tuned):
    frozen = "model.visual.merger.linear_fc1"
    trained = own_weights(make_tuned(*MIXED, f"freeze.prefixes=[{frozen},model.visual.deepstack_merger_list.1]"))
    assert "model.visual.merger.linear_fc2.weight" in trained
    assert not [name for name in trained if name.startswith((frozen, "model.visual.deepstack_merger_list.1"))]


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize("full", ["llm", "vit", "aligner"])
def test_gradients_are_those_of_full_fine_tuning(make_config, make_tuned, make_batch, full, checkpointing):
    """The copies take the originals' place, recomputed activations included; the adapter is zero at the start."""
    options, batch = [f"freeze.full=[{full}]", "freeze.frozen=[]", "tuner.dropout=0"], make_batch(0, 1)
    tuned, expected = make_tuned(*options), make_tuned("tuner=full", "freeze=none")
    config = make_config(*options, f"memory.checkpointing={checkpointing}").memory
    registry.build("memory", config, tuned.base)
    assert any(hasattr(m, "recompute") for m in tuned.base.modules()) is (checkpointing == "true")
    for item in (tuned, expected):
        item.model.train()
        loss_sum(supervised_logits(item.base, batch), batch).backward()
    reference = dict(expected.base.named_parameters())
    for name, parameter in own_weights(tuned).items():
        torch.testing.assert_close(parameter.grad, reference[name].grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("named", ["lm_head", "embed_tokens", "lm_head,language_model.embed_tokens"])
def test_a_tied_head_and_embedding_stay_one(make_tuned, make_batch, tmp_path, named):
    """Trained, saved, loaded and merged: the merged checkpoint is tied again."""
    tuned, batch = make_tuned(f"tuner.modules_to_save=[{named}]"), make_batch(0, 1)
    assert own_weights(tuned).keys() == {"model.language_model.embed_tokens.weight"}
    with torch.no_grad():
        for parameter in own_weights(tuned).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        tuned.model.eval()
        expected = supervised_logits(tuned.base, batch)
        head, embedding = tuned.base.lm_head, tuned.base.model.language_model.embed_tokens
        assert head.weight is embedding.weight
        tuned.export(tmp_path)
        base = Qwen3VLForConditionalGeneration.from_pretrained(TINY)
        merged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(supervised_logits(loaded, batch), expected, atol=1e-4, rtol=1e-4)


def test_all_linear_leaves_out_what_trains_itself(make_tuned):
    tuned = make_tuned("freeze=vit", "tuner.modules_to_save=[visual.merger]")
    assert not [name for name in tuned.adapter if ".visual.merger." in name]
    assert [name for name in tuned.adapter if ".deepstack_merger_list." in name]


def test_a_list_of_layers_stands_for_its_members(make_tuned):
    trained = own_weights(make_tuned("freeze=vit", "tuner.modules_to_save=[deepstack_merger_list]"))
    assert {name.split(".")[3] for name in trained} == {"0", "1", "2"}


def test_parts_of_many_layers_are_named_by_a_suffix(make_tuned):
    trained = own_weights(make_tuned("tuner.modules_to_save=[q_norm]"))
    assert trained.keys() == {f"model.language_model.layers.{i}.self_attn.q_norm.weight" for i in range(4)}


def test_an_untied_head_trains_alone(make_config, outlook):
    config = make_config("tuner.modules_to_save=[lm_head]")
    loaded = registry.build("model", config.model)
    loaded.model.lm_head.weight = torch.nn.Parameter(loaded.model.lm_head.weight.clone(), requires_grad=False)
    loaded.model.config.tie_word_embeddings = False
    policy = registry.build("freeze", config.freeze, loaded.model)
    assert own_weights(registry.build("tuner", config.tuner, loaded, policy, outlook)).keys() == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner.modules_to_save=[head]"], r"tuner\.modules_to_save=head: matches no module .*; known: .*lm_head"),
        (["tuner.modules_to_save=[act_fn]"], r"tuner\.modules_to_save=act_fn: matches no module of the model that has"),
        (
            ["tuner.modules_to_save=[visual.merger]"],
            r"=visual\.merger: the freeze policy keeps model\.visual\.merger fr",
        ),
        (["tuner.modules_to_save=[self_attn,q_norm]"], r"q_norm: lies inside .*self_attn, which trains itself too"),
        (["tuner.modules_to_save=[merger.norm]", *MIXED], r"merger\.norm: lies inside model\.visual\.merger, which"),
        (["tuner.modules_to_save=[language_model]"], r"=model\.language_model: holds .*embed_tokens, which is tied to"),
        (
            ["tuner.modules_to_save=[layers.0.self_attn]", "tuner.target_modules=[q_proj]"],
            r"tuner\.target_modules=q_proj: .*q_proj, in .*layers\.0\.self_attn, trains itself by tuner\.",
        ),
        (
            ["tuner.modules_to_save=[q_proj]", "tuner.target_regex='.*q_proj'"],
            r"tuner\.target_regex=\.\*q_proj: .*layers\.0\.self_attn\.q_proj trains itself",
        ),
        (
            ["freeze.frozen=[vit,llm]", "freeze.full=[aligner]"],
            r"all-linear: nothing of .*aligner.* is left for an ada",
        ),
        ([*MIXED, "tuner.target_modules=[linear_fc2]"], r"linear_fc2: nothing of aligner, vit is left for an adapter"),
        ([*MIXED, "freeze.regex=merger"], r"freeze\.full=aligner: all of it is frozen"),
    ],
)
def test_what_can_not_train_itself_is_refused(make_tuned, overrides, message):
    with pytest.raises(UserError, match=message):
        make_tuned(*overrides)


def test_tied_weights_need_a_method_that_keeps_them_one(make_config, outlook):
    from peft import VeraConfig

    from harness.tuner.peft_adapter import wrap

    config = make_config("tuner.modules_to_save=[lm_head]")
    loaded = registry.build("model", config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    with pytest.raises(UserError, match=r"embed_tokens: is tied to lm_head, and PEFT keeps .* not for VeraConfig"):
        wrap(loaded, policy, config.tuner, VeraConfig)


def test_the_adapter_folder_holds_the_copies(make_tuned, tmp_path):
    from safetensors.torch import load_file

    folder: Path = make_tuned(*MIXED).export(tmp_path)
    saved = load_file(folder / "adapter_model.safetensors")
    assert saved["base_model.model.model.visual.merger.norm.weight"].dtype == torch.float32
    assert not [name for name in saved if "original_module" in name]
