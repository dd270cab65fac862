import copy
import dataclasses

import pytest
import torch

from harness import registry
from harness.data.collator import collate_packed
from harness.errors import UserError
from harness.model.attention import use_varlen
from harness.model.forward import loss_sum, supervised_logits
from harness.tuner.activation import Activation
from harness.tuner.intervention import FORMS, Edit
from harness.tuner.reft import Intervention, ReftConfig, Start

D = 96
"""Width of the tiny model's LLM, which has four layers."""
KINDS = [kind.name for kind in Intervention]
ORTHONORMAL = [kind.name for kind in Intervention if FORMS[kind].orthonormal]


def make_edit(kind, width=20, scramble=True, **options):
    edit = Edit(width, ReftConfig(intervention=Intervention[kind], **options), torch.device("cpu"))
    if scramble:
        with torch.no_grad():
            for parameter in edit.parameters():
                parameter.normal_()
    return edit


def scramble(tuned, std=0.3):
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if name in tuned.adapter:
                parameter.normal_(std=std)
    return tuned.base.train()


def loss(model, batch):
    return loss_sum(supervised_logits(model, batch), batch) / batch.num_supervised


def results(model, batch):
    """Returns logits and every gradient of the mean loss."""
    model.zero_grad()
    logits = supervised_logits(model, batch)
    (loss_sum(logits, batch) / batch.num_supervised).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.fixture
def make_packed(make_config, encoder):
    """Digits by index, all in one row that is longer than they are."""
    rows = registry.build("data", make_config().data).train

    def make(*indices):
        samples = [encoder.load(sample) for index in indices for sample in encoder.encode(rows[index])]
        length = sum(len(sample.sample.ids) for sample in samples) + 5
        return collate_packed([samples], encoder.text, encoder.pad_token_id, length)

    return make


@pytest.mark.parametrize(
    ("overrides", "number"), [([], 4), (["tuner.layers=[1,3]"], 2), (["tuner.prefix=2"], 3), (["tuner.suffix=2"], 4)]
)
def test_trainable_count_is_that_of_the_formula(make_tuned, overrides, number):
    """R and W of rank x D and b of rank values a layer (arXiv 2404.03592, section 3.2).

    With a prefix alone the last layer has none: nothing behind it reads those tokens.
    """
    tuned = make_tuned("tuner=reft", "tuner.rank=3", *overrides)
    trained = [p for p in tuned.model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == number * (2 * 3 * D + 3)


@pytest.mark.parametrize("kind", KINDS)
def test_consreft_and_lobireft_have_no_w(kind):
    matrices = 1 if kind in ("consreft", "lobireft") else 2
    assert sum(p.numel() for p in make_edit(kind).parameters()) == matrices * 4 * 20 + 4


@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_an_edit_lies_in_the_row_space_of_r(kind):
    edit, h = make_edit(kind), torch.randn(2, 5, 20)
    rows = edit.projection.rows()
    torch.testing.assert_close(rows @ rows.T, torch.eye(4))
    change = edit(h) - h
    assert change.norm(dim=-1).min() > 0.1
    torch.testing.assert_close(change - change @ rows.T @ rows, torch.zeros_like(h), atol=1e-5, rtol=0)


def test_loreft_gives_the_subspace_the_coordinates_that_it_learns():
    """R h' = W h + b, the interchange of equation 1; consreft's are b, whatever h is."""
    h = torch.randn(7, 20)
    for activation in Activation:
        edit = make_edit("loreft", activation=activation)
        expected = edit.activation(h @ edit.source.weight.T + edit.source.bias)
        torch.testing.assert_close(edit(h) @ edit.projection.rows().T, expected, atol=1e-5, rtol=1e-5)
    edit = make_edit("consreft")
    torch.testing.assert_close(edit(h) @ edit.projection.rows().T, edit.constant.expand(7, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("with_term", "without"), [("loreft", "direft"), ("noreft", "nodireft")])
def test_the_direct_forms_leave_out_what_was_there(with_term, without):
    """DiReFT is LoReFT without - R h, and lacks orthonormality in its no- form (section 3.2, equation 3)."""
    full, direct, h = make_edit(with_term), make_edit(without), torch.randn(7, 20)
    direct.load_state_dict(full.state_dict())
    rows = full.projection.rows()
    torch.testing.assert_close(direct(h) - full(h), h @ rows.T @ rows, atol=1e-4, rtol=1e-5)
    expected = h + (h @ full.source.weight.T + full.source.bias) @ rows
    torch.testing.assert_close(direct(h), expected, atol=1e-4, rtol=1e-5)


def test_lobireft_adds_one_vector_everywhere():
    edit, h = make_edit("lobireft"), torch.randn(7, 20)
    torch.testing.assert_close(edit(h), h + edit.constant @ edit.projection.rows())


def test_noreft_may_have_a_bias_in_its_projection():
    edit, h = make_edit("noreft", projection_bias=True), torch.randn(7, 20)
    weight, bias = edit.projection.weight, edit.projection.bias
    expected = h + (edit.source(h) - (h @ weight.T + bias)) @ weight
    torch.testing.assert_close(edit(h), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", list(Start))
def test_which_start_as_the_identity(kind, start):
    if start is Start.identity and kind == "consreft":
        pytest.skip("it overwrites a subspace whatever its constant is")
    options = {"projection_bias": True} if kind == "noreft" else {}
    edit, h = make_edit(kind, scramble=False, start=start, **options), torch.randn(7, 20)
    gap = (edit(h) - h).abs().max()
    assert gap < 1e-6 if start is Start.identity else gap > 0.1


def test_dropout_keeps_an_edit_in_its_subspace():
    edit, h = make_edit("loreft", dropout=0.5).train(), torch.randn(200, 20)
    coordinates = (edit(h) - h) @ edit.projection.rows().T
    assert 0.4 < (coordinates.abs() < 1e-5).float().mean() < 0.6
    kept = coordinates.abs() > 1e-5
    exact = (edit.eval()(h) - h) @ edit.projection.rows().T
    torch.testing.assert_close(coordinates[kept], 2 * exact[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["loreft", "lobireft"])
def test_r_stays_orthonormal_while_it_trains(make_tuned, make_batch, kind):
    tuned, batch = make_tuned("tuner=reft", f"tuner.intervention={kind}"), make_batch(0, 1)
    edits = [layer.intervention for layer in tuned.base.model.language_model.layers]
    before = [edit.projection.rows().detach() for edit in edits]
    optimizer = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        value = loss(tuned.base.train(), batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    for edit, start in zip(edits, before, strict=True):
        rows = edit.projection.rows()
        torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-6, rtol=0)
        # They turned, and out of the space that they spanned at first.
        assert (rows - rows @ start.T @ start).abs().max() > 1e-3


def expected_positions(batch, prefix, suffix):
    """The paper's positions by plain loops over samples."""
    edited = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        targets = [index for index in batch.target_index.tolist() if start <= index < end]
        stop = min(targets) + 1 if targets else end
        edited[start : min(start + prefix, stop)] = True
        edited[max(stop - suffix, start) : stop] = True
    return edited


@pytest.mark.parametrize(
    ("attention", "prefix", "suffix"), [("sdpa", 1, 0), ("varlen", 0, 1), ("varlen", 3, 2), ("sdpa", 999, 0)]
)
def test_only_the_chosen_positions_of_each_prompt_change(make_tuned, make_packed, attention, prefix, suffix):
    chosen = [f"tuner.{key}={value}" for key, value in (("prefix", prefix), ("suffix", suffix)) if value]
    base, batch = scramble(make_tuned("tuner=reft", "tuner.layers=[2]", *chosen)), make_packed(0, 1, 2)
    if attention == "varlen":
        use_varlen(base)
    seen, layer = {}, base.model.language_model.layers[2]
    inner = layer.mlp.register_forward_hook(lambda module, args, output: seen.update(mlp=output))
    norm = layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args: seen.update(middle=args[0]))
    layer.register_forward_hook(lambda module, args, output: seen.update(out=output))
    with torch.no_grad():
        supervised_logits(base, batch)
    inner.remove(), norm.remove()
    changed = (seen["out"] != seen["middle"] + seen["mlp"]).any(-1).flatten()
    expected = expected_positions(batch, prefix, suffix)
    # Of padding nobody sees what becomes.
    real = torch.arange(changed.numel()) < batch.num_tokens
    assert torch.equal(changed & real, expected & real) and 0 < (expected & real).sum() < batch.num_tokens


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
@pytest.mark.parametrize("positions", [[], ["tuner.prefix=2", "tuner.suffix=3"]], ids=str)
def test_packed_equals_padded(make_tuned, make_batch, make_packed, attention, positions):
    tuned = make_tuned("tuner=reft", *positions)
    base = scramble(tuned)
    expected = results(base, make_batch(0, 1, 2))
    if attention == "varlen":
        use_varlen(base)
    assert_same(results(base, make_packed(0, 1, 2)), expected)
    assert all(expected[1][name].any() for name in tuned.adapter)


@pytest.mark.parametrize("positions", [[], ["tuner.prefix=2", "tuner.suffix=3"]], ids=str)
def test_checkpointing_changes_no_gradient(make_tuned, make_config, make_batch, make_packed, positions):
    """Not even where another batch passes through the model before the backward pass."""
    base = scramble(make_tuned("tuner=reft", "tuner.dropout=0.3", *positions))
    batch, other = make_packed(0, 1), make_batch(2, 3)
    expected, gradients = results(base, batch), []
    for option in ("false", "true"):
        registry.build("memory", make_config(f"memory.checkpointing={option}").memory, base)
        base.zero_grad()
        torch.manual_seed(3)
        value = loss(base, batch)
        with torch.no_grad():
            loss(base, other)
        value.backward()
        gradients.append({name: p.grad.clone() for name, p in base.named_parameters() if p.grad is not None})
    assert expected[1].keys() == gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("kind", ["loreft", "lobireft"])
def test_the_image_takes_part(make_tuned, make_batch, kind):
    tuned, batch = make_tuned("tuner=reft", f"tuner.intervention={kind}"), make_batch(0, 1)
    logits, gradients = results(tuned.base, batch)
    blank = dataclasses.replace(batch, pixel_values=torch.zeros_like(batch.pixel_values))
    other, others = results(tuned.base, blank)
    assert (logits - other).abs().max() > 0.1
    assert not any(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("positions", [[], ["tuner.prefix=2", "tuner.suffix=3"]], ids=str)
def test_generation_sees_what_training_saw(make_tuned, make_batch, positions):
    """The prompt's positions in the first pass, none in those of one token; with all positions every token."""
    base, batch = scramble(make_tuned("tuner=reft", *positions)).eval(), make_batch(0)
    prompt_BS = batch.input_ids[:, : batch.target_index[0] + 1]
    answer = batch.targets.tolist()
    assert len(answer) > 1
    out = base.generate(
        input_ids=prompt_BS,
        attention_mask=torch.ones_like(prompt_BS),
        mm_token_type_ids=(prompt_BS == base.config.image_token_id).int(),
        pixel_values=batch.pixel_values,
        image_grid_thw=batch.grid_thw,
        max_new_tokens=len(answer),
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda row, ids: [answer[len(ids) - prompt_BS.shape[1]]],
    )
    with torch.no_grad():
        expected = supervised_logits(base, batch)
    torch.testing.assert_close(torch.cat(out.logits), expected, atol=1e-4, rtol=1e-4)


def test_a_copy_of_the_model_edits_by_its_own_weights(make_tuned, make_batch):
    tuned, batch = make_tuned("tuner=reft", "tuner.prefix=2"), make_batch(0)
    twin = copy.deepcopy(scramble(tuned))
    with torch.no_grad():
        expected = supervised_logits(twin, batch)
        scramble(tuned)
        assert torch.equal(supervised_logits(twin, batch), expected)
        assert not torch.allclose(supervised_logits(tuned.base, batch), expected, atol=0.1)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("loreft", "float32"), ("loreft", "bfloat16"), ("nodireft", "bfloat16"), ("consreft", "float32")],
)
def test_trains_over_a_bfloat16_base(make_tuned, make_batch, kind, dtype):
    chosen = ["tuner=reft", f"tuner.intervention={kind}", "tuner.suffix=4"]
    tuned, batch = make_tuned(*chosen, "model.dtype=bfloat16", f"tuner.dtype={dtype}"), make_batch(0, 1)
    exact = make_tuned(*chosen)
    with torch.no_grad():
        for name, parameter in exact.model.named_parameters():
            if name in exact.adapter:
                parameter.copy_(tuned.model.get_parameter(name))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(tuned.base, batch)
    value.backward()
    with torch.no_grad():
        assert value.item() == pytest.approx(loss(exact.base, batch).item(), rel=0.05)
        # Without autocast as well, as generation in plain transformers runs it.
        assert value.item() == pytest.approx(loss(tuned.base, batch).item(), rel=0.05)
    for name in tuned.adapter:
        gradient = tuned.model.get_parameter(name).grad
        assert gradient.dtype == getattr(torch, dtype) and gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"tuner\.rank=0: must be 1 or more"),
        ({"layers": []}, r"tuner\.layers=\[\]: name at least one layer, each once"),
        ({"layers": [1, 1]}, r"tuner\.layers=\[1, 1\]: name at least one layer, each once"),
        ({"prefix": 0}, r"tuner\.prefix=0: must be 1 or more, or null"),
        ({"suffix": -1}, r"tuner\.suffix=-1: must be 1 or more, or null"),
        ({"dropout": 1.0}, r"tuner\.dropout=1\.0"),
        (
            {"intervention": Intervention.lobireft, "activation": Activation.gelu},
            r"tuner\.activation=gelu: lobireft learns a constant",
        ),
        ({"projection_bias": True}, r"tuner\.projection_bias=True: loreft has no such bias"),
        ({"intervention": Intervention.consreft, "start": Start.identity}, r"tuner\.start=identity: consreft overwrit"),
        ({"activation": Activation.tanh, "start": Start.identity}, r"tuner\.start=identity: loreft can not start so"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ReftConfig(**options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuner.rank=97"], r"tuner\.rank=97: must be at most 96, the width of the LLM"),
        (["tuner.layers=[0,4]"], r"tuner\.layers=\[0, 4\]: there is no layer 4; the LLM has 0 to 3"),
        (
            ["tuner.layers=[1,3]", "tuner.prefix=1"],
            r"tuner\.layers=\[1, 3\]: nothing behind the last layer reads tuner\.prefix; leave 3 out, or give a",
        ),
        (["tuner.layers=[-1]"], r"tuner\.layers=\[-1\]: there is no layer -1"),
        (
            ["tuner.layers=[0]", "freeze=prefix", "freeze.prefixes=[model.language_model.layers.0]"],
            r"tuner\.layers=\[0\]: the freeze policy keeps layer 0 frozen",
        ),
        (["freeze=llm"], r"tuner=reft: edits the LLM's layers, and the freeze policy leaves none free to it"),
        (["freeze=none"], r"tuner=reft: edits the LLM alone: freeze aligner, vit \(freeze\.frozen\), or name it in"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(make_tuned, overrides, message):
    with pytest.raises(UserError, match=message):
        make_tuned("tuner=reft", *overrides)


def test_an_unknown_intervention_is_refused_with_the_known(make_config):
    with pytest.raises(UserError, match=r"tuner\.intervention=LoreftIntervention: .*nodireft"):
        make_config("tuner=reft", "tuner.intervention=LoreftIntervention")
