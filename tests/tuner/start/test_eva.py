import pytest
import torch

from harness.model.attention import use_varlen
from harness.tuner.start.calibration import input_moments
from harness.tuner.start.eva import distributed

EVA = ("tuner.init=eva", "tuner.eva.batches=2")


def adapted(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def test_a_holds_the_main_directions_of_the_inputs(make_tuned, outlook, make_batch):
    """Rows of A are the first right-singular vectors of the layer's centred inputs (arXiv 2410.07170, section 3.2)."""
    name = "model.language_model.layers.2.mlp.down_proj"
    base, inputs = make_tuned("tuner=full").base, []
    handle = base.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    from harness.model.forward import supervised_logits

    with torch.no_grad():
        for batch in outlook.batches(2, 4, None):
            supervised_logits(base, batch)
            inputs[-1] = inputs[-1].flatten(0, 1)[batch.attention_mask.flatten().bool()]
    handle.remove()
    x_TD = torch.cat(inputs)
    _, _, Vh_RD = torch.linalg.svd(x_TD - x_TD.mean(0), full_matrices=False)
    A_RD = make_tuned(*EVA, "tuner.eva.rho=1").base.get_submodule(name).lora_A["default"].weight
    torch.testing.assert_close((A_RD @ Vh_RD[:8].T).abs()[:2, :2], torch.eye(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(A_RD @ A_RD.T, torch.eye(8), atol=1e-4, rtol=0)


def test_ranks_move_within_rho_and_their_sum_and_scales_stay(make_tuned):
    tuned = make_tuned(*EVA, "tuner.eva.rho=2")
    ranks = [layer.r["default"] for layer in adapted(tuned.model).values()]
    assert sum(ranks) == 4 * 7 * 8 and len(set(ranks)) > 1 and max(ranks) <= 16
    assert {layer.scaling["default"] for layer in adapted(tuned.model).values()} == {32 / 8}
    assert all(not layer.lora_B["default"].weight.any() for layer in adapted(tuned.model).values())


def test_with_rslora_scales_stay_too(make_tuned):
    layers = adapted(make_tuned(*EVA, "tuner.rslora=true").model).values()
    torch.testing.assert_close(
        torch.tensor([layer.scaling["default"] for layer in layers]), torch.full((len(layers),), 32 / 8**0.5)
    )


def test_directions_are_given_where_they_explain_most():
    shares = {"a": torch.tensor([0.6, 0.3, 0.1]), "b": torch.tensor([0.5, 0.05, 0.01]), "c": torch.tensor([0.04, 0.01])}
    assert distributed(shares, 4) == {"a": 3, "b": 1, "c": 0}


@pytest.mark.parametrize("varlen", [True, False])
def test_layers_fed_the_same_share_what_is_known_of_their_inputs(make_tuned, outlook, varlen):
    """Padding counts for nothing, in rows of their own or laid end to end."""
    base = make_tuned("tuner=full").base
    if varlen:
        use_varlen(base)
    names = [f"model.language_model.layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    found = input_moments(base, names, outlook, (2, 2, None))
    assert found[names[0]] is found[names[1]] is found[names[2]] is not found[names[3]]
    tokens = sum(batch.num_tokens for batch in outlook.batches(2, 2, None))
    assert {own.count for own in found.values()} == {tokens}
