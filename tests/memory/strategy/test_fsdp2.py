import json
import shutil

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import nn

from harness.errors import UserError
from harness.experiment.folder import RunFolder
from harness.memory.strategy import fully_shard
from harness.memory.strategy.fsdp2 import Fsdp2Config, build
from harness.memory.strategy.parallel import Ranks
from harness.trainer.module import TrainingModule
from tests.memory.strategy.conftest import TUNERS


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["lora", "dora", "full"])
def test_two_processes_train_as_one(check, tuner):
    folder = check("fsdp2", tuner)
    settings = json.loads((folder.path / "strategy.json").read_text())
    assert settings["shard_size"] == 2 and settings["replicate_trained"] is (tuner != "full")


@pytest.mark.slow
def test_what_trains_is_split_or_whole_to_the_same_curve(group, figures):
    short = ("trainer.max_steps=4", "optim.schedule.name=constant")
    cases = {
        "split": TUNERS["dora"],
        # The merger's copy is in no block.
        "beside": (*TUNERS["lora"], "freeze=vit", "tuner.modules_to_save=[visual.merger]"),
        "aligner": ("tuner=full", "freeze=llm_vit"),
    }
    spread = ("memory/strategy=fsdp2", "trainer.batch_size=1", "trainer.accumulate=2")
    group.together(1, {f"{name}_one": (*own, *short) for name, own in cases.items()}, resume=False)
    two = {
        f"{name}_{whole}": (*own, *short, *spread, f"memory.strategy.replicate_trained={whole}")
        for name, own in cases.items()
        for whole in ("true", "false")
    }
    group.together(2, two, resume=False)
    for name in two:
        one = group.done[f"{name.split('_')[0]}_one"]
        for key in ("train/loss", "train/grad_norm", "val/loss"):
            expected = figures(one.metrics, key)
            assert figures(group.done[name].metrics, key) == pytest.approx(expected, abs=1e-3, rel=1e-4), (name, key)


@pytest.mark.slow
def test_a_frozen_vit_runs_on_each_process_alone_and_its_features_are_kept(group, one_process, figures):
    cached = ("data.vit_cache.mode=always", f"data.vit_cache.folder={group.home / 'features'}")
    group.together(2, {"fsdp2_cached": (*TUNERS["lora"], "memory/strategy=fsdp2", *cached)}, resume=False)
    one, two = one_process["lora"], group.done["fsdp2_cached"]
    for key in ("train/loss", "val/loss"):
        expected = figures(one.metrics, key)
        assert figures(two.metrics, key) == pytest.approx(expected, abs=1e-4) and len(expected) > 1
    # Six steps are an epoch.
    assert two.read_summary()["vit_cache"]["hit_rate"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_plain_library_loads_the_export(check, load_model, make_config, tuner):
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    folder = check("fsdp2", tuner).path
    if tuner == "full":
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder / "model")
        assert model.config.architectures == ["Qwen3VLForConditionalGeneration"]
    else:
        PeftModel.from_pretrained(load_model(make_config().model).model, folder / "adapter")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(group, check, figures):
    two = check("fsdp2", "lora")
    shutil.copytree(two.path, group.home / "fewer", symlinks=True)
    fewer = RunFolder(group.home / "fewer")
    text = (
        fewer.config.read_text().replace("devices: 2", "devices: 1").replace("\n  batch_size: 2", "\n  batch_size: 4")
    )
    fewer.config.write_text(text)
    group.run(1, f"{fewer.path}@10")
    expected = figures(two.metrics, "train/loss")
    assert figures(fewer.metrics, "train/loss") == pytest.approx(expected, abs=1e-4) and len(expected) == 20


@pytest.mark.slow
def test_micro_batches_copies_and_other_settings_change_no_curve(group, figures):
    choice = (
        "tuner=full",
        "freeze=none",
        "memory/strategy=fsdp2",
        "trainer.max_steps=4",
        "optim.schedule.name=constant",
    )
    own = {
        "kept": ("memory.strategy.reshard_after_forward=false", "trainer.batch_size=1", "trainer.accumulate=2"),
        "copies": ("memory.strategy.shard_size=1", "memory.checkpointing=full"),
    }
    group.together(1, {"plain": (*choice[:2], *choice[3:])}, resume=False)
    group.together(2, {name: (*choice, *settings) for name, settings in own.items()}, resume=False)
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        expected = figures(group.done["plain"].metrics, key)
        for name in own:
            assert figures(group.done[name].metrics, key) == pytest.approx(expected, abs=1e-3, rel=1e-4), (name, key)


@pytest.mark.slow
def test_under_bf16_layers_that_train_are_gathered_in_it_and_adapters_are_not(group, figures):
    bf16 = ("memory.precision=bf16", "trainer.max_steps=4", "optim.schedule.name=constant")
    full, lora = (*TUNERS["full"], *bf16), (*TUNERS["lora"], *bf16)
    whole = "memory.strategy.param_dtype=float32"
    group.together(1, {"bf16_full": full, "bf16_lora": lora}, resume=False)
    cases = {"bf16_full_2": full, "bf16_full_whole_2": (*full, whole), "bf16_lora_2": lora}
    group.together(2, {name: ("memory/strategy=fsdp2", *own) for name, own in cases.items()}, resume=False)
    curves = {name: figures(run.metrics, "train/loss") for name, run in group.done.items() if name.startswith("bf16")}
    for name, curve in curves.items():
        assert curve == pytest.approx(curves[name.split("_whole")[0].removesuffix("_2")], rel=1e-2), name
    first = {name: curve[1] for name, curve in curves.items()}
    assert first["bf16_lora_2"] == pytest.approx(first["bf16_lora"], rel=1e-4)
    assert first["bf16_full_whole_2"] == pytest.approx(first["bf16_full"], rel=1e-5)
    # What norms lose in bfloat16.
    assert first["bf16_full_2"] != pytest.approx(first["bf16_full_whole_2"], rel=1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lily", "fsdp2: gives each layer weights of its own, and layers share .*lily"),
        ("osf", "fsdp2: puts other weights in the place of .*U_low, without the hook that changes its gradient"),
    ],
)
def test_methods_that_can_not_be_split_are_refused(make_tuned, make_config, method, message):
    choice = ("tuner=peft", f"tuner.method={method}")
    module = TrainingModule(make_tuned(*choice), make_config(*choice), 1)
    with pytest.raises(UserError, match=message):
        fully_shard.shard(Fsdp2Config(), module, replicated=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "package", "tolerance"),
    [
        ("bnb4", "bitsandbytes", 1e-4),
        # Which activations are outliers depends on the micro-batch.
        ("bnb8", "bitsandbytes", 3e-2),
        ("hqq memory.quant.group_size=32", "hqq", 1e-4),
        ("quanto", "optimum", 1e-4),
        ("torchao", "torchao", 1e-4),
    ],
)
def test_a_quantised_base_is_split_and_trains_as_on_one(group, figures, quant, package, tolerance):
    pytest.importorskip(package, reason="extras quant and hqq")
    choice = (*TUNERS["lora"], *f"memory/quant={quant}".split(), "trainer.max_steps=4", "trainer.save_every_steps=4")
    names = [f"{quant.split()[0]}_{number}" for number in (1, 2)]
    group.together(1, {names[0]: choice}, resume=False)
    group.together(2, {names[1]: (*choice, "memory/strategy=fsdp2")}, resume=False)
    one, two = (group.done[name] for name in names)
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert figures(two.metrics, key) == pytest.approx(figures(one.metrics, key), rel=tolerance), key


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_compiled_blocks_train_alike(group, figures, tuner):
    choice = (*TUNERS[tuner], "memory/strategy=fsdp2", "memory.checkpointing=full", "trainer.max_steps=4")
    cases = {f"{tuner}_{name}": (*choice, f"trainer.compile={name}") for name in ("false", "true")}
    group.together(2, cases, resume=False)
    plain, compiled = (group.done[name] for name in cases)
    assert "compiling decoder layers" in (compiled.path / "train.log").read_text()
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert figures(compiled.metrics, key) == pytest.approx(figures(plain.metrics, key), rel=1e-4), key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim=muon"], "optim=muon: looks at whole matrices or gradients, and memory/strategy=fsdp2 splits them"),
        (["optim=adamw_8bit"], "optim=adamw_8bit: looks at whole matrices"),
        (["trainer.async_save=true"], r"trainer\.async_save=true: all ranks write their parts of a checkpoint under"),
        (["memory=fp8_base"], "memory=fp8_base: memory/strategy=fsdp2 can not hold weights of 8 bits"),
        (["memory.precision=fp16"], r"memory\.precision=fp16: memory/strategy=fsdp2 has no scaler"),
        *(
            (
                ["optim=lisa", "tuner=full", f"memory.strategy.replicate_trained={whole}"],
                "optim=lisa: has state for other layers each time, of which memory/strategy=fsdp2 saves parts",
            )
            for whole in ("null", "true")
        ),
        (["memory.strategy.shard_size=0"], r"memory\.strategy\.shard_size=0: must be 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("memory/strategy=fsdp2", *overrides)


def test_a_type_for_sums_is_refused_where_there_are_none(make_config):
    config = make_config("memory/strategy=fsdp2", "memory.strategy.reduce_dtype=bfloat16").memory.strategy
    with pytest.raises(UserError, match=r"reduce_dtype=bfloat16: what trains is whole .*replicate_trained=false"):
        build(config, Ranks(world_size=2, trained_share=0.01))
    assert build(config, Ranks(world_size=2, trained_share=0.5)).average is None


def test_a_model_of_which_nothing_is_split_is_refused(make_tuned, make_config):
    choice = ("tuner=full", "freeze=none")
    module = TrainingModule(make_tuned(*choice), make_config(*choice), 1)
    with pytest.raises(UserError, match="replicate_trained=true: leaves nothing to split; use memory/strategy=ddp"):
        fully_shard.shard(Fsdp2Config(), module, replicated=True)


def test_copies_that_do_not_come_out_even_are_refused():
    with pytest.raises(UserError, match=r"memory\.strategy\.shard_size=2: 3 processes do not make groups of it"):
        build(Fsdp2Config(shard_size=2), Ranks(world_size=3))


def test_offloaded_gradients_are_summed_by_gloo():
    assert Fsdp2Config(cpu_offload=True).backend("nccl", 2, 1) == "cpu:gloo,cuda:nccl"
    assert Fsdp2Config(cpu_offload=True).backend("gloo", 2, 1) == "gloo"
    assert Fsdp2Config().backend("nccl", 2, 1) == "nccl"


def test_offloading_takes_a_gpu():
    with pytest.raises(UserError, match=r"cpu_offload=true: takes a GPU, and this run is on the CPU; leave it out"):
        build(Fsdp2Config(cpu_offload=True), Ranks())
    assert isinstance(build(Fsdp2Config(cpu_offload=True), Ranks(device_type="cuda")).lightning, fully_shard.Offloaded)


def test_what_is_whole_moves_to_the_gpu_and_shards_stay(monkeypatch):
    class Shard(torch.Tensor):
        pass

    strategy, moved = fully_shard.Offloaded(), []
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = LightningEnvironment()
    strategy.model = nn.BatchNorm1d(4)
    strategy.model.weight = nn.Parameter(torch.ones(4).as_subclass(Shard))
    monkeypatch.setattr(fully_shard, "DTensor", Shard)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, _: moved.append(self.data_ptr()) or self)
    strategy.model_to_device()
    whole = [strategy.model.bias, *strategy.model.buffers()]
    assert moved == [tensor.data_ptr() for tensor in whole]


@pytest.mark.parametrize("strategy", ["fsdp2", "zero1", "zero3"])
def test_a_tuner_that_reads_gradients_is_refused(make_config, strategy):
    message = f"memory/strategy={strategy}: leaves no whole gradients, which tuner=adalora reads"
    with pytest.raises(UserError, match=message):
        make_config("tuner=adalora", f"memory/strategy={strategy}")


@pytest.mark.parametrize("choice", [["tuner=adalora"], ["optim=adamw_8bit"], ["tuner=adalora", "optim=adafactor"]])
def test_what_looks_at_whole_matrices_takes_whole_ones(make_config, choice):
    with pytest.raises(UserError, match=r"use .*memory\.strategy\.replicate_trained=true, or memory/strategy=ddp"):
        make_config(*choice, "memory/strategy=fsdp2")
    make_config(*choice, "memory/strategy=fsdp2", "memory.strategy.replicate_trained=true")


@pytest.mark.parametrize(
    ("chosen", "share", "expected"),
    [(None, 1 / 16, True), (None, 0.07, False), (True, 1.0, True), (False, 0.001, False)],
)
def test_small_adapters_are_whole_unless_something_else_is_asked_for(chosen, share, expected):
    parallel = build(Fsdp2Config(replicate_trained=chosen), Ranks(world_size=2, trained_share=share))
    assert parallel.settings["replicate_trained"] is expected
    assert (parallel.average is not None) is expected
    assert build(Fsdp2Config(replicate_trained=True), Ranks(world_size=1)).average is None


def test_fsdp_is_another_name(make_config):
    assert make_config("memory/strategy=fsdp").memory.strategy == Fsdp2Config()
