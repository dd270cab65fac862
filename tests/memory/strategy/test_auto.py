from lightning.pytorch.strategies import DDPStrategy

from harness import registry
from harness.memory.strategy.parallel import Ranks


def test_one_process_trains_as_it_is_and_several_by_ddp(make_config, two_ranks):
    config = make_config().memory.strategy
    assert config.name == "auto"
    assert registry.build("memory/strategy", config, Ranks()).lightning == "auto"
    parallel = registry.build("memory/strategy", config, two_ranks)
    assert isinstance(parallel.lightning, DDPStrategy)
    assert parallel.settings["strategy"] == "ddp" and parallel.settings["processes"] == 2
