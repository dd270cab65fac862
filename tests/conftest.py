import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
import pytest
import torch

from harness import registry
from harness.compose import compose_config
from harness.config import RunConfig, to_run_config
from harness.model.loading import Loaded
from harness.model.qwen3_vl import Qwen3VLConfig

# The same examples each time, whatever the machine's speed, and no folder of past failures.
hypothesis.settings.register_profile("harness", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("harness")


def pytest_addoption(parser) -> None:
    parser.addoption("--record", action="store_true", help="write the golden losses of the chosen tuners anew")
    parser.addoption("--kills", type=int, default=2, help="kills of each mode in tests/faults")


@pytest.fixture(scope="session", autouse=True)
def loaded_registry() -> None:
    registry.load()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_waits():
    """Within it, an operation that makes the host wait for the GPU is an error."""

    @contextmanager
    def forbidden() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return forbidden


@pytest.fixture(scope="session")
def make_config(loaded_registry):
    """Composes a run's config from overrides, as the command line does; the same ones once."""
    composed: dict[tuple[str, ...], RunConfig] = {}

    def make(*overrides: str) -> RunConfig:
        if overrides not in composed:
            composed[overrides] = to_run_config(compose_config(overrides))
        return copy.deepcopy(composed[overrides])

    return make


@pytest.fixture(scope="session")
def load_model():
    """Loads a base model; the tiny one as it is shipped is read once, and copied."""
    tiny = dataclasses.replace(Qwen3VLConfig(), path="harness:tiny")
    read: dict[str, Loaded] = {}

    def load(config: Qwen3VLConfig):
        dtype = config.dtype
        if dataclasses.replace(config, dtype=tiny.dtype) != tiny:
            return registry.build("model", config)
        if dtype.name not in read:
            read[dtype.name] = registry.build("model", config)
        return copy.deepcopy(read[dtype.name])

    return load


@pytest.fixture
def outlook(make_batch, tmp_path):
    """What a tuner sees of a run of 20 steps on the handwritten digits."""
    from harness.tuner.outlook import Outlook

    def batches(num_batches: int, batch_size: int, max_length: int | None):
        return (make_batch(*range(i * batch_size, (i + 1) * batch_size)) for i in range(num_batches))

    return Outlook(20, batches, torch.device("cpu"), tmp_path / "start.safetensors")


@pytest.fixture
def make_tuned(make_config, load_model, outlook):
    """Loads the tiny model with a tuner and a freeze policy."""

    def make(*overrides: str, outlook=outlook):
        config = make_config(*overrides)
        loaded = load_model(config.model)
        policy = registry.build("freeze", config.freeze, loaded.model)
        return registry.build("tuner", config.tuner, loaded, policy, outlook)

    return make


@pytest.fixture(scope="session")
def processor(make_config):
    from harness.model.processor import load_processor

    return load_processor(make_config().model)


@pytest.fixture(scope="session")
def make_encoder(processor):
    """Makes the tiny checkpoint's encoder with settings of the data group, on a tokenizer of its own."""
    from harness.data import assemble
    from harness.data.config import DataConfig

    def make(tokenizer=None, **settings):
        own = copy.deepcopy(processor)
        own.tokenizer = own.tokenizer if tokenizer is None else tokenizer
        return assemble.make_encoder(DataConfig(**settings), own)

    return make


@pytest.fixture(scope="session")
def encoder(make_encoder):
    return make_encoder()


@pytest.fixture(scope="session")
def make_batch(make_config, encoder):
    """Collates rows of the handwritten digits' training split, by index."""
    from harness.data.collator import collate

    rows = registry.build("data", make_config().data).train

    def make(*indices: int):
        samples = [sample for index in indices for sample in encoder.encode(rows[index])]
        batch = collate([encoder.load(sample) for sample in samples], encoder.text, encoder.pad_token_id)
        batch.step_supervised = batch.num_supervised
        return batch

    return make
