import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from harness.errors import UserError
from harness.memory.strategy.parallel import Ranks, Weight
from harness.memory.strategy.zero3 import Zero3Config, build
from harness.trainer.module import TrainingModule
from tests.memory.strategy.conftest import TUNERS


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
@pytest.mark.parametrize("tuner", ["lora", "dora", "full"])
def test_two_processes_train_as_one(check, tuner):
    folder = check("zero3", tuner)
    assert json.loads((folder.path / "strategy.json").read_text())["keep_trained"] is (tuner != "full")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_what_is_whole_within_a_step_changes_no_curve(group, figures):
    choice = (*TUNERS["dora"], "memory/strategy=zero3", "trainer.max_steps=6", "optim.schedule.name=constant")
    settings = {
        "zero3_split": ("keep_trained=false", "param_persistence_threshold=0"),
        "zero3_whole": ("keep_trained=true",),
        # Beside a second copy of what is split.
        "zero3_nodes": ("keep_trained=true", "hpz_partition_size=2"),
    }
    cases = {name: (*choice, *(f"memory.strategy.{setting}" for setting in own)) for name, own in settings.items()}
    group.together(2, cases, resume=False)
    split, *others = (group.done[name] for name in cases)
    for other in others:
        for key in ("train/loss", "train/grad_norm", "val/loss"):
            expected = figures(split.metrics, key)
            assert figures(other.metrics, key) == pytest.approx(expected, rel=1e-5) and expected, (other.path, key)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
@pytest.mark.parametrize(("strategy", "tuner"), [("zero3", "lora"), ("zero3", "full"), ("zero3_offload", "full")])
def test_compiled_layers_train_alike(group, figures, strategy, tuner):
    choice = (*TUNERS[tuner], f"memory/strategy={strategy}", "memory.checkpointing=full", "trainer.max_steps=4")
    cases = {f"{strategy}_{tuner}_{name}": (*choice, f"trainer.compile={name}") for name in ("false", "true")}
    group.together(2, cases, resume=False)
    plain, compiled = (group.done[name] for name in cases)
    log = (compiled.path / "train.log").read_text()
    assert "compiling decoder layers" in log and "fell back to Python" not in log
    # Of the decoder layers, and of the ViT's blocks.
    assert "compiled 2 programs" in log
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert figures(compiled.metrics, key) == pytest.approx(figures(plain.metrics, key), rel=1e-4), key


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_settings_reach_deepspeed(make_config):
    choice = ["memory/strategy=zero3_offload", "memory.strategy.hpz_partition_size=2", "optim.max_grad_norm=0.5"]
    choice.append("memory.strategy.param_persistence_threshold=100")
    parallel = build(
        make_config(*choice).memory.strategy,
        Ranks(4, max_grad_norm=0.5, layer=(Weight(900, 2, False), Weight(100, 2, True))),
    )
    section = parallel.settings["deepspeed"]["zero_optimization"]
    assert (section["stage"], section["zero_hpz_partition_size"]) == (3, 2)
    assert section["stage3_prefetch_bucket_size"] == 900
    assert section["offload_param"]["device"] == section["offload_optimizer"]["device"] == "cpu"
    assert parallel.settings["deepspeed"]["gradient_clipping"] == 0.5
    assert parallel.lightning.config == parallel.settings["deepspeed"] and parallel.sharded


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_adapters_norms_and_biases_are_whole_and_matrices_asked_for_ahead():
    matrix, adapter, norm = layer = Weight(90_000, 2, False), Weight(900, 2, True), Weight(1_000, 1, False)
    cases = [
        ({}, 0.01, {adapter, norm}),
        ({}, 0.5, {norm}),
        ({"keep_trained": False}, 0.01, {norm}),
        ({"keep_trained": True, "param_persistence_threshold": 0}, 0.5, {adapter}),
        ({"quantized_weights": True}, 0.01, set()),
    ]
    for options, share, kept in cases:
        made = build(Zero3Config(**options), Ranks(2, trained_share=share, layer=layer))
        section = made.settings["deepspeed"]["zero_optimization"]
        assert section["stage3_param_persistence_threshold"] == 0
        assert {weight for weight in layer if made.lightning.keeps(weight)} == kept, options
        assert section["stage3_prefetch_bucket_size"] == sum(weight.values for weight in {*layer} - kept)
        assert made.settings["keep_trained"] is (adapter in kept) and matrix not in kept
    made = build(Zero3Config(param_persistence_threshold=1_000), Ranks(2, trained_share=0.01, layer=layer))
    assert made.settings["deepspeed"]["zero_optimization"]["stage3_prefetch_bucket_size"] == matrix.values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_deepspeed_hears_of_what_is_kept_whole(make_tuned, make_config, monkeypatch):
    choice = ("tuner=lora", "memory/strategy=zero3")
    parallel = build(Zero3Config(), Ranks(2, trained_share=0.01))
    module = TrainingModule(make_tuned(*choice), make_config(*choice), 1, parallel)
    persistent = []

    def split(strategy, _):
        for parameter in module.parameters():
            parameter.ds_shape, parameter.ds_numel, parameter.ds_persist = parameter.shape, parameter.numel(), False
            parameter.all_gather = None
        strategy.model = SimpleNamespace(optimizer=SimpleNamespace(persistent_parameters=persistent))

    monkeypatch.setattr(DeepSpeedStrategy, "setup", split)
    parallel.lightning._lightning_module = module
    parallel.lightning.setup(None)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    kept = {names[id(parameter)] for parameter in persistent}
    assert kept == {name for name, p in module.named_parameters() if p.requires_grad or p.ndim == 1}
    assert any("lora_A" in name for name in kept) and any("input_layernorm" in name for name in kept)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_what_is_whole_is_gathered_at_once_and_not_from_copies_of_before_the_step():
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    from harness.memory.strategy.engine import keep_whole

    gathered, copy = [], object()

    def make(trains, persists):
        return SimpleNamespace(
            requires_grad=trains,
            ds_persist=persists,
            ds_status=ZeroParamStatus.NOT_AVAILABLE,
            ds_secondary_tensor=copy,
            all_gather=lambda *_: pytest.fail("one by one"),
            all_gather_coalesced=lambda share: gathered.append(share) or SimpleNamespace(wait=lambda: None),
        )

    norm, adapter, there = make(False, True), make(True, False), make(False, True)
    there.ds_status = ZeroParamStatus.AVAILABLE
    persistent = [norm, there]
    keep_whole([adapter], persistent)
    assert persistent == [norm, there, adapter] and adapter.ds_persist
    norm.all_gather(persistent)
    assert gathered == [[adapter], [norm]]
    assert adapter.ds_secondary_tensor is None and norm.ds_secondary_tensor is copy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_a_run_on_the_cpu_is_refused():
    strategy = build(Zero3Config(), Ranks()).lightning
    strategy.accelerator = CPUAccelerator()
    with pytest.raises(UserError, match=r"memory/strategy=zero3: takes GPUs, .* use memory/strategy=ddp or fsdp2"):
        strategy.setup_environment()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_compiled_layers_have_torchs_linear_function(make_config, monkeypatch):
    """Traced through DeepSpeed's, which asks for a weight's number, each layer has a program of its own."""
    config = make_config("memory/strategy=zero3").memory.strategy
    for compiled in (False, True):
        strategy = build(config, Ranks(2, compiled=compiled, layer=(Weight(900, 2, False),))).lightning
        assert strategy.config["zero_optimization"]["memory_efficient_linear"] is not compiled
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: pytest.fail("of an older run"))
    monkeypatch.setattr(DeepSpeedStrategy, "teardown", lambda _: None)
    strategy.teardown()
    assert torch.nn.functional.linear is plain


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_compiled_layer_keeps_no_view_of_a_weight(frozen):
    """Or what was gathered for its forward pass would stay until the backward pass."""
    layer = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.SiLU(), nn.Linear(8, 8))
    layer.requires_grad_(not frozen)
    whole = {parameter: parameter.data.clone() for parameter in layer.parameters()}
    x = torch.randn(4, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    y = torch.compile(lambda layer, x: layer(x))(layer, x)
    gathered = [StorageWeakRef(parameter.untyped_storage()) for parameter in whole]
    for parameter in whole:
        parameter.data = torch.empty(0)
    assert all(storage.expired() for storage in gathered)
    for parameter, value in whole.items():
        parameter.data = value
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim=schedule_free"], "optim=schedule_free: keeps an average in the place of weights"),
        (["optim=galore", "tuner=full"], "optim=galore: looks at whole matrices"),
        (["memory=fp8_base"], "memory=fp8_base: memory/strategy=zero3 can not hold weights of 8 bits"),
        (["memory.strategy.hpz_partition_size=0"], r"memory\.strategy\.hpz_partition_size=0: must be 1 or more"),
        (
            ["memory.strategy.quantized_weights=true", "memory.strategy.keep_trained=true"],
            r"memory\.strategy\.keep_trained=true: what is kept would be exact or of 8 bits by turns",
        ),
        (["memory.strategy.prefetch_bucket_size=-1"], r"memory\.strategy\.prefetch_bucket_size=-1: must be 0 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("memory/strategy=zero3", *overrides)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hpz_partition_size": 2}, r"memory\.strategy\.hpz_partition_size=2: 3 processes do not make groups of it"),
        ({"pin_memory": True}, r"memory\.strategy\.pin_memory=true: has no effect: nothing is offloaded"),
    ],
)
def test_what_can_not_take_effect_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(Zero3Config(**options), Ranks(world_size=3))
