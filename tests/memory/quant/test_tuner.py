"""Tuners on quantised bases: what trains, is exported and is refused; the loss is that of the same weights plain."""

import logging

import pytest
import torch
from torch import nn

from harness import registry
from harness.data.extent import Extent
from harness.errors import UserError
from harness.memory.kept import kept_by_layers
from harness.memory.prediction import fixed
from harness.memory.quant.linear import QuantLinear, quantized_layers, sizes
from harness.memory.strategy.config import StrategyConfig
from harness.model.forward import supervised_logits, supervised_loss
from harness.optim.adamw import AdamWConfig
from harness.tuner.own_format import attach, is_own

pytest.importorskip("bitsandbytes", reason="extra quant")
registry.load()
CPU = torch.device("cpu")
FREE = {"tuner=longlora": ["tuner.train_embeddings=false", "tuner.train_norms=false"]}
"""Settings with which a tuner exports no model."""
WHOLE = {"full", "llamapro"}
"""Tuners that train the weights of a model themselves."""
TUNERS = [[f"tuner={name}", *FREE.get(f"tuner={name}", [])] for name in registry.names("tuner") if name not in WHOLE]
VARIANTS = [
    *(["tuner=lora", f"tuner.init={init}"] for init in ("orthogonal", "eva", "gaussian")),
    ["tuner=lora", "tuner.rslora=true"],
    ["tuner=lora", "tuner.fused=false"],
    ["tuner=dora", "tuner.fused=false"],
    ["tuner=lora", "freeze.frozen=[vit]", "freeze.full=[aligner]"],
    ["tuner=bone", "tuner.init=bat", "tuner.rank=32"],
    *(
        ["tuner=peft", f"tuner.method={method}"]
        for method in ("hra", "ia3", "loha", "osf", "shira", "randlora", "ln_tuning", "waveft", "lily")
    ),
]
CHOICES = [pytest.param(item, marks=pytest.mark.slow) for item in TUNERS + VARIANTS]
FAST = [["tuner=lora"], ["tuner=dora"]]


def train(tuned, batch, steps=2):
    tuned.model.train()
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = supervised_loss(tuned.base, batch) / batch.num_supervised
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return supervised_logits(getattr(getattr(model, "base_model", model), "model", model), batch)


@pytest.mark.parametrize("choice", FAST + CHOICES, ids=" ".join)
def test_trains_its_own_weights_and_exports_an_adapter_of_the_plain_base(
    make_quantized, make_batch, dense, tmp_path, choice
):
    from peft import PeftModel

    tuned, batch = make_quantized("memory/quant=bnb4", *choice), make_batch(0, 1)
    before = {name: p.detach().clone() for name, p in tuned.model.named_parameters()}
    train(tuned, batch)
    for name, parameter in tuned.model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
    moved = [n for n, p in tuned.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * sum(p.requires_grad for p in tuned.model.parameters())
    assert len(dict(quantized_layers(tuned.model))) == 28
    expected, folder = logits(tuned.base, batch), tuned.export(tmp_path)
    plain = dense(tuned.model)
    if is_own(folder):
        attach(plain, folder)
    else:
        assert folder.name == "adapter"
        plain = PeftModel.from_pretrained(plain, str(folder))
    torch.testing.assert_close(logits(plain, batch), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("choice", FAST, ids=" ".join)
@pytest.mark.parametrize("quant", ["bnb4", "bnb8"])
def test_the_loss_is_that_of_the_same_weights_plain(make_quantized, make_tuned, make_batch, choice, quant):
    tuned, batch = make_quantized(f"memory/quant={quant}", *choice), make_batch(0, 1, 2)
    plain = make_tuned(*choice)
    with torch.no_grad():
        for name, layer in quantized_layers(tuned.base):
            held = plain.base.get_submodule(name)
            # What DoRA knows of the weights is theirs as they were.
            held.weight.copy_(layer.weight)
        for (_, ours), (_, theirs) in zip(tuned.model.named_parameters(), plain.model.named_parameters(), strict=True):
            if theirs.requires_grad:
                theirs.copy_(ours)
        for module, other in zip(tuned.base.modules(), plain.base.modules(), strict=True):
            if hasattr(module, "base_norms"):
                other.base_norms.copy_(module.base_norms)
    ours, theirs = train(tuned, batch, 3), train(plain, batch, 3)
    # bnb8 rounds activations too.
    near = {"rel": 1e-4} if quant == "bnb4" else {"rel": 0.02, "abs": 1e-3}
    assert ours == pytest.approx(theirs, **near) and ours[2] < ours[0]


def test_groups_train_on_quantised_layers(make_quantized, make_batch, caplog):
    caplog.set_level(logging.INFO)
    losses = [
        train(make_quantized("memory/quant=bnb4", "tuner=dora", "tuner.dropout=0", f"tuner.fused={fused}"), batch, 3)
        for batch in [make_batch(0, 1)]
        for fused in ("true", "false")
    ]
    assert "8 attentions and MLPs of the LLM train in groups" in caplog.text
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner=full"], r"memory/quant=bnb4: tuner=full trains weights, and quantised ones can not"),
        (["tuner=llamapro"], r"memory/quant=bnb4: tuner=llamapro as it is set exports the whole model"),
        (["tuner=longlora"], r"memory/quant=bnb4: tuner=longlora as it is set exports the whole model"),
        (["tuner.init=loftq"], r"memory/quant=bnb4: tuner=lora as it is set exports the whole model"),
        (["tuner.init=pissa"], r"tuner=lora with tuner\.init=pissa takes A and B out of the base's weights"),
        (["tuner.init=pissa_niter_4"], r"with tuner\.init=pissa_niter_4 takes A and B out"),
        (["tuner.init=olora"], r"with tuner\.init=olora takes A and B out"),
        (["tuner.init=corda"], r"with tuner\.init=corda takes A and B out"),
        (["tuner.init=lora_ga"], r"with tuner\.init=lora_ga needs a gradient of the base's weights"),
        (["tuner=peft", "tuner.method=glora"], r"with tuner\.method=glora is for plain linear layers"),
        (["memory/strategy=zero2"], r"memory/quant=bnb4: memory/strategy=zero2 casts all that the model holds"),
        (
            ["memory/strategy=fsdp2", "memory.quant.storage=bfloat16"],
            r"memory\.quant\.storage=bfloat16: memory/strategy=fsdp2 may cast bits",
        ),
        (["memory=fp8_base"], r"memory/quant=bnb4: memory=fp8_base holds the same weights otherwise"),
    ],
)
def test_what_needs_plain_weights_is_refused_on_the_command_line(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("memory/quant=bnb4", *overrides)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["tuner.modules_to_save=[layers.0.mlp]"], r"model\.language_model\.layers\.0\.mlp\.gate_proj"),
        (["freeze.full=[llm]"], r"model\.language_model\.layers\.0\.self_attn\.q_proj"),
    ],
)
def test_quantised_modules_do_not_train_beside_an_adapter(make_quantized, overrides, name):
    with pytest.raises(UserError, match=rf"tuner\.modules_to_save \(or freeze\.full\)=.*{name} is quantised"):
        make_quantized("memory/quant=bnb4", "freeze.frozen=[vit]", *overrides)


@pytest.mark.parametrize("quant", ["bnb4", "bnb8"])
def test_activations_and_weights_are_predicted(make_quantized, make_tuned, quant):
    tuned, plain = make_quantized(f"memory/quant={quant}", "tuner=lora"), make_tuned("tuner=lora")
    extent = Extent(64, 8, 0)
    kept = [kept_by_layers(t.base, extent, CPU, torch.float32, compiled=False) for t in (tuned, plain)]
    # The bits take no activations, nor does a frozen weight.
    assert sum(layer.none for layer in kept[0]) <= 1.05 * sum(layer.none for layer in kept[1])
    layers = dict(quantized_layers(tuned.model))
    saved = sum(4 * layer.in_features * layer.out_features - layer.nbytes for layer in layers.values())
    weights = [fixed(t.model, t.base, extent, AdamWConfig(), StrategyConfig(), 1).weights for t in (tuned, plain)]
    assert weights[0] == weights[1] - saved
    assert sum(sizes(tuned.model).values()) == sum(p.numel() for p in plain.model.parameters())


def test_only_what_is_named_stays_as_it_is(make_base):
    model, _ = make_base("memory/quant=bnb4", "memory.quant.skip=[layers.0,down_proj,visual.merger,lm_head]")
    kinds = {name: type(m) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, kind in kinds.items():
        plain = "layers.0." in name or "down_proj" in name or "visual.merger." in name or name == "lm_head"
        assert kind is (nn.Linear if plain else QuantLinear), name
    biased = model.model.visual.blocks[0].attn.qkv
    assert isinstance(biased, QuantLinear) and biased.bias is not None
    x = torch.randn(3, biased.in_features)
    torch.testing.assert_close(biased(x), x @ biased.weight.t() + biased.bias)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ("[visul]", r"memory\.quant\.skip=visul: is part of no module's name"),
        ("[model,lm_head]", r"leaves no linear layer to quantise; use memory/quant=none"),
        ("[model.visual]", r"has to name lm_head: in this model it is tied to the embedding"),
        ("['.']", r"memory\.quant\.skip=\.: would name every module"),
    ],
)
def test_lists_that_can_not_be_are_refused(make_base, skip, message):
    with pytest.raises(UserError, match=message):
        make_base("memory/quant=bnb4", f"memory.quant.skip={skip}")


@pytest.mark.gpu
@pytest.mark.parametrize("tuner", ["lora", "dora"])
def test_groups_train_on_a_gpu_as_peft_does(make_config, load_model, make_batch, outlook, tuner):
    losses = []
    for fused in ("true", "false"):
        overrides = ["memory/quant=bnb4", f"tuner={tuner}", "tuner.dropout=0", f"tuner.fused={fused}"]
        config = make_config(*overrides, "model.attention=sdpa")
        loaded = load_model(config.model)
        registry.build("memory/quant", config.memory.quant, loaded.model, torch.device("cuda"))
        torch.manual_seed(0)
        tuned = registry.build(
            "tuner", config.tuner, loaded, registry.build("freeze", config.freeze, loaded.model), outlook
        )
        losses.append(train(tuned, make_batch(0, 1).to("cuda"), 3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
