import pytest

from harness import registry
from harness.errors import UserError
from harness.memory.strategy.ddp import DdpConfig, build
from harness.memory.strategy.parallel import Ranks


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["lora", "dora", "full"])
def test_two_processes_train_as_one(check, tuner):
    check("ddp", tuner)


def test_settings_reach_torch(make_config, two_ranks):
    choice = ["memory/strategy=ddp", "memory.strategy.static_graph=true", "memory.strategy.bucket_cap_mb=5"]
    parallel = registry.build("memory/strategy", make_config(*choice).memory.strategy, two_ranks)
    settings = {"find_unused_parameters": False, "static_graph": True, "bucket_cap_mb": 5.0}
    assert parallel.lightning._ddp_kwargs == settings | {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    assert settings.items() <= parallel.settings.items()


def test_it_looks_for_parameters_without_gradient_where_the_optimiser_skips_some():
    found = [build(DdpConfig(), Ranks(2, skips_parameters=skips)) for skips in (False, True)]
    assert [parallel.settings["find_unused_parameters"] for parallel in found] == [False, True]


@pytest.mark.parametrize(("key", "value"), [("find_unused_parameters", False), ("static_graph", True)])
def test_what_would_make_processes_wait_is_refused(key, value):
    with pytest.raises(UserError, match=rf"memory\.strategy\.{key}={value}: the optimiser leaves parameters"):
        build(DdpConfig(**{key: value}), Ranks(2, skips_parameters=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_cap_mb": 0.0}, r"memory\.strategy\.bucket_cap_mb=0\.0: must be more than 0"),
        ({"static_graph": True, "find_unused_parameters": True}, "a static graph has no parameters to look for"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DdpConfig(**options)
