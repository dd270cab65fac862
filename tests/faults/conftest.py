import importlib
import importlib.util
import random
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def pytest_generate_tests(metafunc) -> None:
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("--kills")))


@pytest.fixture(scope="session")
def faults():
    spec = importlib.util.spec_from_file_location("faults", FOLDER / "faults.py")
    module = sys.modules["faults"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # What each run would import by itself otherwise.
    import harness.experiment.train  # noqa: F401

    return module


@pytest.fixture(scope="session")
def scripts(faults):
    """Imports a script of benchmarks/, which finds those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module


@pytest.fixture(scope="session")
def bench(faults, tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def name(request):
    """A run folder's name for each test."""
    return "".join(letter if letter.isalnum() else "_" for letter in request.node.name)


@pytest.fixture
def draw(name):
    return random.Random(name)
