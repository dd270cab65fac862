"""What the fixtures of the same names make, for a rank of a test that is a process of its own."""

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config
from harness.model.processor import load_processor
from harness.tuner.outlook import Outlook

registry.load()


def make_config(*overrides):
    return to_run_config(compose_config(overrides))


def make_tuned(*overrides):
    config = make_config(*overrides)
    loaded = registry.build("model", config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    return registry.build("tuner", config.tuner, loaded, policy, Outlook(4, None, None, None))


def build(run, *overrides):
    """Returns a test module's Run on what these overrides name."""
    return run(make_config, make_tuned, load_processor(make_config().model), *overrides)
