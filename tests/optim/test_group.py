import pytest
import torch
from torch import nn

from harness.errors import UserError
from harness.optim.config import OptimConfig
from harness.optim.group import decays, learning_rates, parameter_groups, sizes


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


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 3, 2, 2, 2), True),  # a convolution
        ((8, 64), True),  # LoRA's A
        ((1, 4, 1, 1, 1), False),  # DoRA's magnitude of a convolution
        ((4, 1), False),  # boft_s, lora_E, ia3_l
        ((1, 4), False),
        ((4,), False),  # vera_lambda, a bias
        ((1,), False),
        ((), False),
    ],
)
def test_only_what_has_two_dimensions_above_one_decays(shape: tuple[int, ...], expected: bool) -> None:
    assert decays(nn.Parameter(torch.ones(shape))) == expected


def test_a_matrix_that_zero_3_keeps_as_a_flat_shard_decays() -> None:
    shard = nn.Parameter(torch.empty(0))
    shard.ds_shape = torch.Size([4, 4])
    assert decays(shard)


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


def test_sizes_of_all_groups_are_told() -> None:
    model = Model().requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    assert sizes(groups_of(model)) == "aligner 16, aligner_no_decay 12"


def rates_of(model: nn.Module, config: OptimConfig, scales: dict[str, float] | None = None) -> dict[str, float]:
    groups = parameter_groups(model, config, 1e-4, scales)
    rates = {name: group["lr"] for group in groups for name in names_in(model, group)}
    assert set(rates) == {name for name, _ in model.named_parameters()}
    assert len({group["name"] for group in groups}) == len(groups)
    return rates


def test_rates_decay_with_the_distance_from_the_top_of_each_tower() -> None:
    """Two LLM layers and one ViT block: the head's and the mergers' rate is the peak (ELECTRA's rule)."""
    rates = rates_of(Model(), OptimConfig(layer_decay=0.5, vit_lr=1e-6, aligner_lr=1e-5))
    llm, visual = "model.language_model", "model.visual"
    expected = {
        f"{llm}.layers.1.proj.weight": 1e-4 / 2,
        f"{llm}.layers.1.norm.bias": 1e-4 / 2,
        f"{llm}.layers.0.proj.weight": 1e-4 / 4,
        f"{llm}.embed_tokens.weight": 1e-4 / 8,  # tied to the head here: it goes with the embedding
        f"{visual}.merger.proj.weight": 1e-5,
        f"{visual}.deepstack_merger_list.0.proj.weight": 1e-5,
        f"{visual}.blocks.0.proj.weight": 1e-6 / 2,
        f"{visual}.patch_embed.weight": 1e-6 / 4,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)


def test_an_untied_head_and_the_final_norm_have_the_peak() -> None:
    model = Model()
    model.lm_head.weight = nn.Parameter(torch.ones(8, 4))
    model.model.language_model.norm = nn.LayerNorm(4)
    rates = rates_of(model, OptimConfig(layer_decay=0.5))
    assert rates["lm_head.weight"] == rates["model.language_model.norm.weight"] == 1e-4


def test_groups_of_layers_are_named_by_number_from_the_bottom_up() -> None:
    assert list(learning_rates(parameter_groups(Model(), OptimConfig(layer_decay=0.5), 1e-4))) == [
        "llm_embed",
        "llm_layer_00",
        "llm_layer_01",
        "aligner",
        "vit_embed",
        "vit_layer_00",
    ]


def test_layer_decay_composes_with_scaled_rates_and_with_names_of_adapters() -> None:
    model = nn.Module()
    model.base_model = nn.Module()
    model.base_model.model = Model()
    name = "base_model.model.model.language_model.layers.0.proj.weight"
    groups = parameter_groups(model, OptimConfig(layer_decay=0.5), 1e-4, {name: 16.0})
    (group,) = [group for group in groups if name in dict(group["params"])]
    assert (group["name"], group["lr"]) == ("llm_layer_00_x16", pytest.approx(16e-4 / 4))


def test_height_counts_layers_that_do_not_train() -> None:
    model = Model().requires_grad_(False)
    model.model.language_model.layers[0].proj.weight.requires_grad_(True)
    (group,) = parameter_groups(model, OptimConfig(layer_decay=0.5), 1e-4)
    assert group["lr"] == pytest.approx(1e-4 / 4)


def test_a_layer_decay_of_one_is_none() -> None:
    plain, one = (parameter_groups(Model(), OptimConfig(layer_decay=value), 1e-4) for value in (None, 1.0))
    assert [(g["name"], g["lr"]) for g in plain] == [(g["name"], g["lr"]) for g in one]


@pytest.mark.parametrize("value", [0.0, 1.5, -0.5, float("nan")])
def test_a_layer_decay_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"optim\.layer_decay=.*: must be in \(0, 1\]"):
        OptimConfig(layer_decay=value)
