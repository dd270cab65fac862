"""Where bitsandbytes is installed; it has kernels for the CPU too."""

import subprocess
import sys

import pytest
import torch

from harness.errors import UserError
from harness.optim.adamw_8bit import AdamW8bitConfig, build

BIG = "model.language_model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
SHAPES = {BIG: (128, 64), EMBEDDING: (128, 64)}


def test_without_the_library_it_says_how_to_get_it(make_problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optim=adamw_8bit: bitsandbytes is not installed .*; pip install -c"):
        build(AdamW8bitConfig(), make_problem().groups)


def test_its_config_needs_no_library():
    code = "import sys, harness.optim.adamw_8bit; assert not {'torch', 'bitsandbytes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"optim\.min_8bit_size=-1: must be 0 or more"):
        AdamW8bitConfig(min_8bit_size=-1)
    with pytest.raises(UserError, match=r"optim\.beta1=1\.0"):
        AdamW8bitConfig(beta1=1.0)


def test_large_matrices_keep_8_bits_and_embeddings_and_small_ones_32(make_problem):
    pytest.importorskip("bitsandbytes")
    problem = make_problem(shapes=SHAPES, dtype=torch.float32)
    optimizer = build(AdamW8bitConfig(), problem.groups)
    problem.train(optimizer, range(1))
    types = {name: optimizer.state[p]["state1"].dtype for name, p in problem.parameters.items()}
    assert types.pop(BIG) == torch.uint8 and set(types.values()) == {torch.float32}


@pytest.mark.parametrize("min_8bit_size", [4096, 10**9])
def test_updates_are_near_those_of_adamw_and_equal_with_32_bits(make_problem, min_8bit_size):
    """Block-wise quantisation errs by a few percent of a step (arXiv 2110.02861, figure 2)."""
    pytest.importorskip("bitsandbytes")
    settings = {"shapes": SHAPES, "dtype": torch.float32, "lr": 1e-3}
    ours, theirs = make_problem(**settings), make_problem(**settings)
    before = ours.values()
    ours.train(build(AdamW8bitConfig(min_8bit_size=min_8bit_size), ours.groups), range(5))
    theirs.train(torch.optim.AdamW(theirs.groups, betas=(0.9, 0.95)), range(5))
    for name, expected in theirs.values().items():
        error = (ours.values()[name] - expected).norm() / (expected - before[name]).norm()
        quantised = name == BIG and min_8bit_size == 4096
        assert 1e-3 < error < 0.1 if quantised else error < 1e-4, (name, error)
