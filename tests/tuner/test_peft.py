"""Runs every method of PEFT on the tiny Qwen3-VL: which work, in what way, and which do not and why."""

import warnings
from dataclasses import dataclass

import peft
import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import Qwen3VLForConditionalGeneration

from harness import registry
from harness.errors import UserError
from harness.model.component import Component, component_of
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.peft import PeftMethodConfig
from harness.tuner.peft_method import DEFAULTS, INTO, NEEDED, OWN_TUNER, REFUSED, RESERVED, WITHOUT_EFFECT, Method
from harness.tuner.peft_options import checked_options, config_class

CHECKPOINT = registry._PACKAGE / "model" / "tiny_checkpoint"
NO_BIAS = "Base layer has no bias, cannot merge"
NOT_SUPPORTED = "This method is not supported for Lily"


@dataclass(frozen=True, slots=True)
class Runs:
    """What a method that runs is expected to do;"""

    options: str = ""
    """Overrides, apart from the method: for layers of 64 to 192."""
    start: float = 1e-4
    """The largest change of a logit at the start; more than 1e-4 where the method starts at random."""
    merge_fails: str | None = None
    """The message with which PEFT refuses to merge."""
    components: frozenset[str] = frozenset(component.name for component in Component)
    """Where its trained weights are where every component is free; what layers share counts to the first of them."""
    warns: str | None = None
    """What PEFT warns of when it is built or loaded."""


SMALL = "tuner.options={r:4}"
EXPECTED = {
    Method.adamss: Runs("tuner.options={r:8,num_subspaces:2}"),
    Method.beft: Runs(merge_fails=NO_BIAS, warns="Detected that the base layer has no bias"),
    # Xavier's start, as in the paper's experiments; tuner.options={init_weights:true} is zero.
    Method.c3a: Runs("tuner.options={block_size:32}", start=1),
    Method.deft: Runs(SMALL),
    Method.delora: Runs(SMALL),
    Method.frod: Runs(),
    Method.glora: Runs(SMALL),
    Method.gralora: Runs("tuner.options={r:4,gralora_k:2}"),
    Method.hira: Runs(SMALL),
    Method.hra: Runs(SMALL),
    Method.ia3: Runs(),
    Method.lily: Runs(SMALL, merge_fails=NOT_SUPPORTED),
    Method.ln_tuning: Runs(),
    Method.loha: Runs(SMALL),
    Method.lokr: Runs(),
    Method.osf: Runs("tuner.options={effective_rank:8}"),
    Method.peanut: Runs(SMALL),
    Method.psoft: Runs("tuner.options={r:8}"),
    Method.pvera: Runs("tuner.options={r:16}"),
    Method.randlora: Runs("tuner.options={r:16}"),
    Method.road: Runs("tuner.options={group_size:32}"),
    Method.shira: Runs(SMALL),
    Method.supertuning: Runs(),
    Method.tinylora: Runs(components={"vit"}),
    Method.trainable_tokens: Runs("tuner.options={token_indices:[0,1,2,3,4,5,6,7,8,9]}", components={"llm"}),
    # A vector of all trained values starts at random, and none of them is a factor that could be zero.
    Method.unilora: Runs(start=1, components={"vit"}),
    # The bank of vectors and their mixture start at random; both at zero would give no gradient.
    Method.vblora: Runs("tuner.options={vector_length:32,num_vectors:16,topk:2}", start=1),
    Method.waveft: Runs("tuner.options={n_frequency:100}"),
}
"""Every method that `tuner=peft` offers."""


TOKENS = {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1] * 4}
VIRTUAL_TOKENS = {
    Method.cartridge: {},
    Method.cpt: TOKENS,
    Method.multitask_prompt_tuning: {},
    Method.p_tuning: {},
    Method.prefix_tuning: {},
    Method.prompt_tuning: {},
}
"""Methods that put virtual tokens before the text, with the options that they need."""

FAILS = {
    Method.adaption_prompt: (
        {"target_modules": "self_attn", "adapter_len": 4, "adapter_layers": 2},
        ValueError,
        "Unsupported model type for adaption prompt: 'qwen3_vl'",
    ),
    Method.poly: ({"target_modules": ["q_proj"]}, ValueError, "task_ids should not be None"),
    Method.shadow: ({"target_modules": ["q_proj"]}, AttributeError, "none of the expected attributes"),
}
"""The other methods that can not be used: options, error and message."""

NAMES = sorted(method.name for method in EXPECTED)


def overrides(method):
    return ["tuner=peft", f"tuner.method={method.name}", *EXPECTED[method].options.split()]


@pytest.fixture
def listed_warnings(request):
    """Lets pass what the table says that PEFT warns of."""
    with warnings.catch_warnings():
        if EXPECTED[Method[request.getfixturevalue("name")]].warns:
            warnings.filterwarnings("ignore", message=EXPECTED[Method[request.getfixturevalue("name")]].warns)
        yield


def evaluate(model, batch):
    model.eval()
    with torch.no_grad():
        return supervised_logits(model, batch)


def train(tuned, batch, mixed=False):
    tuned.model.train()
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        # The backward pass stands outside, as in a run: gradients have the type of their weights.
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=mixed):
            loss = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def base_logits(make_config, make_batch):
    model = registry.build("model", make_config().model).model
    return evaluate(model, make_batch(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_method_trains_and_loads_and_merges_as_listed(
    make_tuned, make_batch, base_logits, tmp_path, name, listed_warnings
):
    expected, batch = EXPECTED[Method[name]], make_batch(0, 1)
    tuned = make_tuned(*overrides(Method[name]))
    off = (evaluate(tuned.base, batch) - base_logits).abs().max().item()
    assert off < expected.start and (expected.start == 1e-4 or off > 1e-4)

    before = {key: p.detach().clone() for key, p in tuned.model.named_parameters()}
    train(tuned, batch)
    trained = {key for key, p in tuned.model.named_parameters() if p.requires_grad}
    changed = {key for key, p in tuned.model.named_parameters() if not torch.equal(p, before[key])}
    assert trained and changed == trained <= tuned.adapter

    after = evaluate(tuned.base, batch)
    assert (after - base_logits).abs().max() > 1e-3 * (off < 1e-4)
    folder = tuned.export(tmp_path)
    plain = PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT), folder)
    torch.testing.assert_close(evaluate(plain.base_model.model, batch), after, atol=1e-5, rtol=1e-5)
    if expected.merge_fails:
        with pytest.raises((ValueError, NotImplementedError), match=expected.merge_fails):
            plain.merge_and_unload()
    else:
        torch.testing.assert_close(evaluate(plain.merge_and_unload(), batch), after, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_method_trains_in_every_component_over_a_bfloat16_base(
    make_config, make_tuned, make_batch, name, listed_warnings
):
    """ViT, aligner and LLM; but the patch embedding, a convolution, is no linear layer and gets no adapter."""
    choice = [*overrides(Method[name]), "freeze=none", "model.dtype=bfloat16", "memory.checkpointing=true"]
    tuned, batch = make_tuned(*choice), make_batch(0, 1)
    registry.build("memory", make_config(*choice).memory, tuned.base)
    named = {key: p for key, p in tuned.model.named_parameters() if p.requires_grad}
    assert {component_of(key).name for key in named} == EXPECTED[Method[name]].components
    tuned.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sum(supervised_logits(tuned.base, batch), batch) / batch.num_supervised
    loss.backward()
    for key, parameter in named.items():
        assert parameter.dtype == torch.float32 and parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_method_trains_on_a_gpu(make_tuned, make_batch, name, listed_warnings):
    """Built on the CPU and moved: what PEFT keeps beside parameters and buffers has to follow."""
    tuned = make_tuned(*overrides(Method[name]), "freeze=none", "model.dtype=bfloat16")
    tuned.model.to("cuda")
    train(tuned, make_batch(0, 1).to("cuda"), mixed=True)
    for key, parameter in tuned.model.named_parameters():
        assert parameter.device.type == "cuda" and torch.isfinite(parameter).all(), key


def test_every_method_of_peft_is_offered_refused_or_has_a_tuner():
    known = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert {method.name for method in Method} == {method.value for method in Method} == known
    assert set(EXPECTED) | set(REFUSED) | set(OWN_TUNER) == set(Method)
    assert not set(EXPECTED) & set(REFUSED) and not set(OWN_TUNER) & (set(EXPECTED) | set(REFUSED))
    assert set(OWN_TUNER.values()) <= set(registry.names("tuner"))


def test_tables_name_fields_that_peft_has():
    for table in (DEFAULTS, NEEDED, WITHOUT_EFFECT):
        for method, options in table.items():
            assert options.keys() <= config_class(method).__dataclass_fields__.keys(), method
    everything = {key for method in Method for key in config_class(method).__dataclass_fields__}
    assert RESERVED.keys() <= everything and INTO.keys() <= EXPECTED.keys()


@pytest.mark.parametrize("method", REFUSED, ids=lambda method: method.name)
def test_refused_methods_say_why(method):
    with pytest.raises(UserError, match=f"tuner.method={method.name}: can not train here: {REFUSED[method][:20]}"):
        PeftMethodConfig(method=method)


def test_refused_methods_are_those_with_a_proof():
    assert VIRTUAL_TOKENS.keys() | FAILS.keys() | {Method.xlora} == REFUSED.keys()


@pytest.mark.parametrize("method", VIRTUAL_TOKENS, ids=lambda method: method.name)
def test_virtual_tokens_never_reach_the_decoder(make_tuned, make_batch, method):
    """PEFT adds them in a forward pass of its own, which knows neither packed rows nor mRoPE."""
    model, batch = make_tuned("tuner=full").base, make_batch(0)
    before = evaluate(model, batch)
    settings = config_class(method)(task_type="CAUSAL_LM", num_virtual_tokens=4, **VIRTUAL_TOKENS[method])
    wrapped = peft.get_peft_model(model, settings)
    assert torch.equal(evaluate(model, batch), before)
    assert all(".prompt_encoder." in f".{key}" for key, p in wrapped.named_parameters() if p.requires_grad)


def test_xlora_mixes_in_a_forward_pass_of_its_own(make_tuned, make_batch, tmp_path):
    lora = make_tuned("tuner=lora").export(tmp_path)
    model = make_tuned("tuner=full", "freeze=llm").base.requires_grad_(False)
    settings = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=96, adapters={"0": str(lora)})
    wrapped = peft.get_peft_model(model, settings)
    assert all("xlora_classifier" in key for key, p in wrapped.named_parameters() if p.requires_grad)
    assert not supervised_logits(model, make_batch(0)).requires_grad


@pytest.mark.parametrize("method", FAILS, ids=lambda method: method.name)
def test_refused_methods_fail_in_peft(make_tuned, make_batch, method):
    """Fails where PEFT learns to do it: the method then goes into the table of those that run."""
    options, kind, message = FAILS[method]
    model, batch = make_tuned("tuner=full").base, make_batch(0)
    with pytest.raises(kind, match=message):
        peft.get_peft_model(model, config_class(method)(**options))
        evaluate(model, batch)


@pytest.mark.parametrize("method", OWN_TUNER, ids=lambda method: method.name)
def test_methods_with_a_tuner_of_their_own_name_it(method):
    with pytest.raises(
        UserError, match=f"tuner.method={method.name}: has a tuner of its own: tuner={OWN_TUNER[method]}"
    ):
        PeftMethodConfig(method=method)


def test_ia3_counts_an_entry_an_output_and_an_input_of_the_last_mlp_layer(make_tuned):
    """arXiv 2205.05638, section 3.3: l_k, l_v and l_ff, here on every linear layer."""
    model = make_tuned("tuner=peft", "tuner.method=ia3").model
    layers = {key: m for key, m in model.named_modules() if hasattr(m, "ia3_l")}
    expected = sum(m.in_features if key.endswith("down_proj") else m.out_features for key, m in layers.items())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_loha_and_hra_count_as_their_papers_say(make_tuned):
    """Rank x 2 (inputs + outputs) (arXiv 2108.06098) and rank x inputs (arXiv 2405.17484)."""
    for method, weight in (
        ("loha", lambda m: 2 * 4 * (m.in_features + m.out_features)),
        ("hra", lambda m: 4 * m.in_features),
    ):
        base = make_tuned("tuner=full").base.model.language_model.layers
        expected = sum(weight(m) for m in base.modules() if isinstance(m, torch.nn.Linear))
        model = make_tuned("tuner=peft", f"tuner.method={method}", SMALL).model
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected, method


def test_ln_tuning_trains_the_norms_of_what_is_free(make_tuned):
    model = make_tuned("tuner=peft", "tuner.method=ln_tuning").model
    trained = {key.replace(".ln_tuning_layers.default", "") for key, p in model.named_parameters() if p.requires_grad}
    norms = 4 * 4 + 1
    assert len(trained) == norms and all("norm" in key and component_of(key) is Component.llm for key in trained)


def test_trainable_tokens_train_their_rows_of_embedding_and_head_only(make_tuned, make_batch):
    tuned = make_tuned(
        "tuner=peft", "tuner.method=trainable_tokens", "tuner.options={token_indices:[3,7]}", "freeze=none"
    )
    trained = [p for p in tuned.model.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in trained] == [(2, 96)]


MERGER = "freeze.trainable=[model.visual.merger]"
"""What the freeze policy has to leave free for it to train beside an adapter."""


@pytest.mark.parametrize("method", ["hra", "ia3", "shira"])
def test_modules_to_save_train_beside_and_are_exported(make_tuned, make_batch, tmp_path, method):
    tuned, batch = (
        make_tuned("tuner=peft", f"tuner.method={method}", "tuner.modules_to_save=[visual.merger]", MERGER),
        make_batch(0),
    )
    train(tuned, batch)
    beside = {key for key, p in tuned.model.named_parameters() if p.requires_grad and key not in tuned.adapter}
    assert beside and all("visual.merger.modules_to_save" in key for key in beside)
    folder = tuned.export(tmp_path)
    plain = PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT), folder)
    torch.testing.assert_close(
        evaluate(plain.base_model.model, batch), evaluate(tuned.base, batch), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("method", ["hra", "ln_tuning"])
def test_a_frozen_component_gets_nothing(make_tuned, method):
    named = make_tuned("tuner=peft", f"tuner.method={method}", "freeze=llm").model.named_parameters()
    assert {component_of(key) for key, p in named if p.requires_grad} == {Component.vit, Component.aligner}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tuner.method=hra", "tuner.options={rank:4}"],
            r"tuner\.options\.rank=4: hra has no such option\. Known: apply_GS",
        ),
        (["tuner.method=loha", "tuner.options={aplha:4}"], r"aplha=4: loha has no such option\. Did you mean alpha\?"),
        (["tuner.method=hra", "tuner.options={r:4.5}"], r"tuner\.options\.r=4\.5: expected int"),
        (["tuner.method=hra", "tuner.options={r:true}"], r"tuner\.options\.r=True: expected int"),
        (["tuner.method=delora", "tuner.options={bias:some}"], r"bias=some: expected none or all or delora_only"),
        (["tuner.method=hra", "tuner.options={bias:some}"], r"hra of PEFT can not use it: .*bias"),
        (["tuner.method=hra", "tuner.options={bias:all}"], r"tuner\.options\.bias=all: .* has no biases; leave it out"),
        (
            ["tuner.method=c3a", "tuner.options={block_size:7}"],
            r"tuner\.options=\{'block_size': 7\}: c3a of PEFT can not use",
        ),
        (["tuner.method=ln_tuning", "tuner.target_modules=[q_proj]"], r"q_proj: matches no norm; known: .*q_norm"),
        (
            ["tuner.method=trainable_tokens", "tuner.options={token_indices:[0]}", "freeze=llm"],
            r"all-linear: lies only in",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(make_tuned, overrides, message):
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=peft", *overrides)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("hra", {"target_modules": ["q_proj"]}, "can not be given here: targets are tuner.target_modules"),
        ("hra", {"modules_to_save": ["lm_head"]}, "can not be given here: is tuner.modules_to_save"),
        (
            "adamss",
            {"use_asa": True},
            "tuner.options.use_asa=True: can not be given here: belongs to adaptive subspaces",
        ),
        ("trainable_tokens", {}, "tuner.options.token_indices=None: give the numbers of the tokens to train"),
    ],
)
def test_options_that_can_not_take_effect_are_refused(method, options, message):
    with pytest.raises(UserError, match=message):
        PeftMethodConfig(method=Method[method], options=options)


def test_trainable_tokens_have_no_modules_to_save():
    with pytest.raises(UserError, match=r"tuner\.modules_to_save=\['lm_head'\]: is no part of trainable_tokens"):
        PeftMethodConfig(method=Method.trainable_tokens, options={"token_indices": [1]}, modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("waveft", "scaling", 25),
        ("ia3", "feedforward_modules", ["down_proj"]),
        ("lokr", "init_weights", "lycoris"),
        ("osf", "rank_pattern", {"q_proj": 4, "k_proj": 0.5}),
        ("road", "variant", "road_2"),
        ("supertuning", "r", None),
    ],
)
def test_options_may_have_every_type_that_peft_annotates(method, option, value):
    assert checked_options(Method[method], {option: value})[option] == value


def test_the_library_is_not_shadowed_by_the_tuner_s_module():
    import harness.tuner.peft

    assert peft.PeftModel is PeftModel and peft.__file__ != harness.tuner.peft.__file__
