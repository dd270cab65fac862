"""Two ranks of which one has images: its first layer may have gradients where the other's has none."""

from importlib.util import find_spec

import pytest

CASES = {
    "aligner_alone": ("tuner=full", "freeze.frozen=[vit,llm]"),
    "aligner_and_lora": ("tuner=lora", "tuner.dropout=0", "freeze.frozen=[vit]", "freeze.full=[aligner]"),
    "lora_everywhere": ("tuner=lora", "tuner.dropout=0", "freeze=none"),
}
STEPS = ("trainer.max_steps=4", "trainer.save_every_steps=4")


@pytest.fixture(scope="module")
def one_process(group):
    group.together(1, {f"images_{name}": (*own, *STEPS) for name, own in CASES.items()}, resume=False)
    return {name: group.done[f"images_{name}"] for name in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])
def test_gradients_are_added_up_alike(group, figures, one_process, strategy):
    """Collectives have no names: in another order on each rank they hang, or add up what does not belong together."""
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    cases = {f"{strategy}_{name}": (f"memory/strategy={strategy}", *own, *STEPS) for name, own in CASES.items()}
    group.together(2, cases, resume=False)
    for name, alone in one_process.items():
        expected = figures(alone.metrics, "train/loss")
        found = figures(group.done[f"{strategy}_{name}"].metrics, "train/loss")
        assert found == pytest.approx(expected, abs=2e-4), name
