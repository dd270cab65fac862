import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.optim.config import OptimConfig
from harness.optim.group import decays, learning_rates, parameter_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.proj = nn.Linear(4, 4)


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 4, 2)
        self.blocks = nn.ModuleList([Block()])
        self.merger = Block()
        self.deepstack_merger_list = nn.ModuleList([Block()])


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.language_model = nn.Module()
        self.language_model.embed_tokens = nn.Embedding(8, 4)
        self.language_model.layers = nn.ModuleList([Block(), Block()])


class Model(nn.Module):
    """The names of a Qwen3-VL, the vision tower first as in transformers, and the tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.model.language_model.embed_tokens.weight


def groups_of(model: nn.Module, vit_lr: float | None = None, aligner_lr: float | None = None) -> list[dict]:
    return parameter_groups(model, OptimConfig(vit_lr=vit_lr, aligner_lr=aligner_lr), 1e-4)


def names_in(model: nn.Module, group: dict) -> list[str]:
    assert all(p is dict(model.named_parameters())[name] for name, p in group["params"])
    return [name for name, _ in group["params"]]


def test_one_group_for_each_component_and_decay_in_order() -> None:
    groups = groups_of(Model(), vit_lr=1e-6, aligner_lr=1e-5)
    got = [(group["name"], group["component"], group["lr"], group["weight_decay"]) for group in groups]
    assert got == [
        ("llm", "llm", 1e-4, 0.1),
        ("llm_no_decay", "llm", 1e-4, 0.0),
        ("aligner", "aligner", 1e-5, 0.1),
        ("aligner_no_decay", "aligner", 1e-5, 0.0),
        ("vit", "vit", 1e-6, 0.1),
        ("vit_no_decay", "vit", 1e-6, 0.0),
    ]


def test_components_without_a_rate_of_their_own_take_the_common_one() -> None:
    assert {group["lr"] for group in groups_of(Model())} == {1e-4}


def test_every_trainable_parameter_stands_once_tied_ones_too() -> None:
    model = Model()
    members = [id(p) for group in groups_of(model) for _, p in group["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))


def test_vectors_do_not_decay() -> None:
    model = Model()
    for group in groups_of(model):
        assert all((p.ndim < 2) == (group["weight_decay"] == 0) for _, p in group["params"])
    llm, llm_no_decay = groups_of(model)[:2]
    assert names_in(model, llm) == [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.proj.weight",
        "model.language_model.layers.1.proj.weight",
    ]
    assert names_in(model, llm_no_decay) == [
        f"model.language_model.layers.{layer}.{rest}"
        for layer in (0, 1)
        for rest in ("norm.weight", "norm.bias", "proj.bias")
    ]


def test_dora_magnitudes_do_not_decay_whatever_their_shape() -> None:
    name = "base_model.model.model.visual.patch_embed.proj.lora_magnitude_vector.default.weight"
    assert not decays(name, nn.Parameter(torch.ones(1, 4, 1, 1, 1)))
    assert decays("model.visual.patch_embed.proj.weight", nn.Parameter(torch.ones(4, 3, 2, 2, 2)))


def test_a_matrix_that_zero_3_keeps_as_a_flat_shard_decays() -> None:
    shard = nn.Parameter(torch.empty(0))
    shard.ds_shape = torch.Size([4, 4])
    assert decays("lm_head.weight", shard)


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = Model().requires_grad_(False)
    model.model.visual.merger.proj.weight.requires_grad_(True)
    (group,) = groups_of(model, aligner_lr=1e-5)
    assert (group["name"], group["lr"]) == ("aligner", 1e-5)
    assert names_in(model, group) == ["model.visual.merger.proj.weight"]


@pytest.mark.parametrize("component", ["vit", "aligner"])
def test_a_rate_for_a_component_that_trains_nothing_is_refused(component: str) -> None:
    model = Model()
    model.model.visual.requires_grad_(False)
    with pytest.raises(UserError, match=rf"optim\.{component}_lr=1e-05: the {component} trains nothing"):
        groups_of(model, **{f"{component}_lr": 1e-5})


def test_a_model_that_trains_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter of the model trains"):
        groups_of(Model().requires_grad_(False))


def test_a_parameter_of_no_component_is_refused() -> None:
    with pytest.raises(UserError, match=r"parameter weight belongs to none of"):
        groups_of(nn.Linear(2, 2))


def test_scaled_rates_are_groups_of_their_own_and_compose_with_those_of_components() -> None:
    scales = {"model.language_model.layers.0.proj.weight": 16.0, "model.visual.blocks.0.proj.weight": 16.0}
    groups = parameter_groups(Model(), OptimConfig(vit_lr=1e-6), 1e-4, scales)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["llm"] == 1e-4 and rates["llm_x16"] == pytest.approx(16e-4)
    assert rates["vit"] == 1e-6 and rates["vit_x16"] == pytest.approx(16e-6) and rates["aligner"] == 1e-4


def test_rates_are_logged_under_the_name_of_the_group_without_decay_or_not() -> None:
    assert learning_rates(groups_of(Model(), vit_lr=1e-6)) == {"llm": 1e-4, "aligner": 1e-4, "vit": 1e-6}
