"""Every optimiser on two ranks: curves are those of one process, a run that was killed goes on with the same one."""

import pytest

from harness import registry
from tests.memory.strategy.conftest import TUNERS

registry.load()
STEPS = (
    *("data.generation.enabled=false", "trainer.max_steps=4", "trainer.val_every_steps=4"),
    *("trainer.save_every_steps=2", "trainer.keep_checkpoints=9"),
)


def choice(name):
    config = registry.get("optim", name).config
    tuner = ("tuner=full",) if config.full_only else TUNERS["lora"]
    return (*tuner, f"optim={name}", *(["optim.rank=4"] if hasattr(config(), "rank") else []), *STEPS)


# Kernels of 8 bits are a GPU's.
CASES = {name: choice(name) for name in registry.names("optim") if not name.endswith("8bit")}
STRATEGIES = {
    "ddp": (CASES, ()),
    "fsdp2_whole": (CASES.keys() - {"lisa"}, ("memory.strategy.replicate_trained=true",)),
    "fsdp2_split": (
        [name for name in CASES if registry.get("optim", name).config.elementwise],
        ("memory.strategy.replicate_trained=false",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_as_one_and_go_on_as_they_were(group, figures, strategy):
    names, settings = STRATEGIES[strategy]
    alone = {f"alone_{name}": CASES[name] for name in names if f"alone_{name}" not in group.done}
    if alone:
        group.together(1, alone, resume=False)
    chosen = (f"memory/strategy={strategy.partition('_')[0]}", *settings)
    two = {name: group.prepare(f"{strategy}_{name}", 2, *CASES[name], *chosen) for name in sorted(names)}
    group.run(2, *(argument for path in two.values() for argument in (path, f"{path}@2")))
    for name in two:
        one, both = group.done[f"alone_{name}"], group.done[f"{strategy}_{name}"]
        for key in ("train/loss", "train/grad_norm", "val/loss"):
            expected = figures(one.metrics, key)
            assert figures(both.path / "whole.jsonl", key) == pytest.approx(expected, abs=1e-3, rel=1e-3), (name, key)
            assert figures(both.metrics, key) == figures(both.path / "whole.jsonl", key), (name, key)
        assert len(figures(both.metrics, "train/loss")) == 4
