"""The head under strategies that split weights: `pytest -m slow tests/memory/strategy/test_head.py`."""

from importlib.util import find_spec

import pytest

from tests.memory.strategy.conftest import TUNERS

STRATEGIES = {
    "fsdp2": ("memory/strategy=fsdp2",),
    "zero3": ("memory/strategy=zero3",),
}
CASES = {
    "lora": TUNERS["lora"],
    "full": TUNERS["full"],
    "tokens": (*TUNERS["lora"], "model.new_special_tokens=['<cat>']", "model.train_new_tokens=true"),
}


@pytest.fixture
def short(group, monkeypatch):
    """Runs six steps, with logits of four tokens at once."""
    monkeypatch.setenv("HEAD_CHUNK", "4")

    def run(name, ranks, *own):
        every = (f"trainer.{key}=6" for key in ("max_steps", "val_every_steps", "save_every_steps"))
        group.together(ranks, {name: (*own, *every)}, resume=False)
        return group.done[name].metrics

    return run


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_ranks_with_unlike_numbers_of_chunks_do_not_wait_for_each_other(short, figures, strategy, case):
    """A rank with more supervised tokens has more chunks of logits; each gathers the head as often all the same."""
    if strategy == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    one = figures(short(f"chunks_one_{strategy}_{case}", 1, *CASES[case]), "train/loss")
    two = figures(short(f"chunks_{strategy}_{case}", 2, *CASES[case], *STRATEGIES[strategy]), "train/loss")
    assert two == pytest.approx(one, abs=1e-4) and len(one) == 6
