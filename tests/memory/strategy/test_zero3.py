from importlib.util import find_spec

import pytest

from harness.errors import UserError
from harness.memory.strategy.parallel import Ranks
from harness.memory.strategy.zero3 import Zero3Config, build
from tests.memory.strategy.conftest import TUNERS


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
@pytest.mark.parametrize("tuner", ["lora", "dora", "full"])
def test_two_processes_train_as_one(check, tuner):
    check("zero3", tuner)


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
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert figures(compiled.metrics, key) == pytest.approx(figures(plain.metrics, key), rel=1e-4), key


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
def test_settings_reach_deepspeed(make_config):
    choice = ["memory/strategy=zero3_offload", "memory.strategy.hpz_partition_size=2", "optim.max_grad_norm=0.5"]
    choice.append("memory.strategy.param_persistence_threshold=100")
    parallel = build(make_config(*choice).memory.strategy, Ranks(4, max_grad_norm=0.5, layer_sizes=(900, 100)))
    section = parallel.settings["deepspeed"]["zero_optimization"]
    assert (section["stage"], section["zero_hpz_partition_size"]) == (3, 2)
    assert section["stage3_prefetch_bucket_size"] == 900
    assert section["offload_param"]["device"] == section["offload_optimizer"]["device"] == "cpu"
    assert parallel.settings["deepspeed"]["gradient_clipping"] == 0.5
    assert parallel.lightning.config == parallel.settings["deepspeed"] and parallel.sharded


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim=schedule_free"], "optim=schedule_free: keeps an average in the place of weights"),
        (["optim=galore", "tuner=full"], "optim=galore: looks at whole matrices"),
        (["memory=fp8_base"], "memory=fp8_base: memory/strategy=zero3 can not hold weights of 8 bits"),
        (["memory.strategy.hpz_partition_size=0"], r"memory\.strategy\.hpz_partition_size=0: must be 1 or more"),
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
        ({"quantized_weights": True}, r"memory\.strategy\.quantized_weights=true: has kernels for a GPU only"),
        ({"pin_memory": True}, r"memory\.strategy\.pin_memory=True: has no effect: nothing is offloaded"),
        ({"nvme_path": "/x"}, r"memory\.strategy\.nvme_path=/x: has no effect: nothing is offloaded"),
    ],
)
def test_what_can_not_take_effect_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(Zero3Config(**options), Ranks(world_size=3))
