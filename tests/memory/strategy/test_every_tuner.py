"""Every tuner and every method of PEFT on two ranks: curves are those of one process, or the run is refused."""

import dataclasses
from importlib.util import find_spec

import pytest

from harness import registry
from harness.tuner.peft_method import NEEDED, OWN_TUNER, REFUSED, Method
from tests.memory.strategy.conftest import exported, slug

registry.load()


def fields(name):
    return {field.name for field in dataclasses.fields(registry.get("tuner", name).config)}


STEPS = (
    "data.generation.enabled=false",
    "trainer.max_steps=3",
    "trainer.val_every_steps=3",
    "trainer.save_every_steps=3",
)
LEFT_OUT = {
    *(Method.c3a, Method.road, Method.vblora),  # Sizes that are no factors of the tiny model's.
    Method.pvera,  # Draws its weights.
}
TUNERS = {
    # Dropout draws other numbers on two ranks.
    name: (f"tuner={name}", *(["tuner.dropout=0"] if "dropout" in fields(name) else []))
    for name in registry.names("tuner")
    if name != "peft"
}
METHODS = {
    method.name: ("tuner=peft", f"tuner.method={method.name}")
    for method in Method
    if method not in {*OWN_TUNER, *REFUSED, *LEFT_OUT} and not NEEDED.get(method)
}
REFUSED_BY = {
    "ddp": set(),
    "fsdp2 memory.strategy.replicate_trained=true": set(),
    "fsdp2 memory.strategy.replicate_trained=false": {"adalora", "lily", "osf", "tinylora", "unilora"},
    "zero3": {"adalora"},
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", REFUSED_BY)
def test_two_ranks_train_as_one(group, figures, strategy):
    if strategy == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("needs the deepspeed extra")
    cases = {name: choice for name, choice in (TUNERS | METHODS).items() if name not in REFUSED_BY[strategy]}
    alone = {f"every_{name}": (*choice, *STEPS) for name, choice in cases.items() if f"every_{name}" not in group.done}
    if alone:
        group.together(1, alone, resume=False)
    chosen, prefix = f"memory/strategy={strategy}".split(), slug(strategy)
    two = {f"{prefix}_every_{name}": (*choice, *STEPS, *chosen) for name, choice in cases.items()}
    group.together(2, two, resume=False)
    far = []
    for name in cases:
        expected = figures(group.done[f"every_{name}"].metrics, "train/loss")
        found = figures(group.done[f"{prefix}_every_{name}"].metrics, "train/loss")
        # lily's rounding grows to 8e-4.
        assert found == pytest.approx(expected, abs=1e-3), name
        assert len(found) == 3
        one, both = (
            exported(group.done[run].path / "adapter") | exported(group.done[run].path / "model")
            for run in (f"every_{name}", f"{prefix}_every_{name}")
        )
        assert one and {key: value.shape for key, value in both.items()} == {
            key: value.shape for key, value in one.items()
        }
        # What starts at zero is all that was learnt.
        apart = {key: float((both[key].float() - value.float()).norm()) for key, value in one.items()}
        if any(apart[key] > 0.1 * float(value.float().norm()) + 1e-6 for key, value in one.items()):
            far.append(name)
    # And that of its weights further.
    assert set(far) <= {"lily"}
