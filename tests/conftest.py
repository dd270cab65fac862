import pytest
import torch

from harness import registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config


@pytest.fixture(scope="session", autouse=True)
def loaded_registry() -> None:
    registry.load()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_config(loaded_registry):
    """Composes a run's config from overrides, as the command line does."""

    def make(*overrides: str) -> RunConfig:
        return to_run_config(compose_config(overrides))

    return make


@pytest.fixture
def make_tuned(make_config):
    """Loads the tiny model with a tuner and a freeze policy."""

    def make(*overrides: str):
        config = make_config(*overrides)
        loaded = registry.build("model", config.model)
        return registry.build("tuner", config.tuner, loaded, registry.build("freeze", config.freeze))

    return make


@pytest.fixture(scope="session")
def processor(make_config):
    from harness.model.processor import load_processor

    return load_processor(make_config().model)


@pytest.fixture(scope="session")
def encoder(processor):
    from harness.data.encoding import Encoder

    return Encoder(processor.tokenizer, processor.image_processor)


@pytest.fixture(scope="session")
def make_batch(make_config, encoder):
    """Collates rows of the handwritten digits' training split, by index."""
    from harness.data.collator import collate

    rows = registry.build("data", make_config().data).train

    def make(*indices: int):
        samples = [encoder.encode(rows[index]) for index in indices]
        batch = collate([encoder.load(sample) for sample in samples], encoder.pad_token_id)
        batch.step_supervised = batch.num_supervised
        return batch

    return make
