"""Where compiled kernels are kept: below the data's cache, unless the user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.experiment import compile_cache
from harness.experiment.compile_cache import keep_compiled


@pytest.fixture(autouse=True)
def unset(monkeypatch, tmp_path):
    for name in compile_cache.settings(tmp_path):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_both_compilers_write_below_the_cache_by_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep_compiled("outputs/cache")
    for name, kind in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        folder = os.environ[name]
        assert folder.startswith(f"{tmp_path}/outputs/cache/compile/torch-") and folder.endswith(kind)
    assert os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] == "1"


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compiled(str(tmp_path))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))


def test_without_a_cache_torch_keeps_its_own(monkeypatch):
    keep_compiled(None)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ and "TORCHINDUCTOR_FX_GRAPH_CACHE" not in os.environ


def test_it_comes_before_torch_and_torch_takes_it(tmp_path):
    code = """
import sys
from harness.experiment.compile_cache import keep_compiled
keep_compiled(sys.argv[1])
assert "torch" not in sys.modules
import torch._inductor.config as config
import torch._functorch.config as functorch
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir(), config.fx_graph_cache, functorch.enable_autograd_cache)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    folder, graphs, gradients = done.stdout.split()
    assert folder.startswith(str(tmp_path)) and (graphs, gradients) == ("True", "True")


def test_a_folder_that_can_not_be_made_is_said_to_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache_dir=.*/file: no folder can be made in it"):
        keep_compiled(str(tmp_path / "file"))
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(UserError, match=r"data\.cache_dir=.*/new: no folder can be made in it"):
        keep_compiled(str(tmp_path / "new"))


def test_a_filled_cache_may_be_read_only_and_none_is_made(tmp_path, monkeypatch):
    keep_compiled(str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    for name, folder in compile_cache.settings(tmp_path / "cache").items():
        monkeypatch.delenv(name)
        if name.endswith("_DIR"):
            Path(folder).mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda *args: False)
    keep_compiled(str(tmp_path / "cache"))
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path))
