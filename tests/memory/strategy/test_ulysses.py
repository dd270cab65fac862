"""Two and four ranks that share sequences, against one process on the same global batch: `pytest -m slow`.

All runs of a number of ranks share a process group, for processes and their imports cost more than the runs.
"""

import shutil

import pytest
from safetensors.torch import load_file

from harness.experiment.folder import RunFolder
from tests.memory.strategy.conftest import assert_same_weights

SAME = ("optim.schedule.name=constant", "model.attention=varlen")
PACKED = (*SAME, "data.packing=true", "data.packing_length=101")
TUNERS = {
    "lora": ("tuner=lora", "tuner.dropout=0"),
    "dora": ("tuner=dora", "tuner.dropout=0", "freeze=none"),
    "full": ("tuner=full", "freeze=none"),
}
"""lora leaves the vision side frozen; the others train ViT and aligner too."""
SHARED = ("memory.sequence_parallel=2", "trainer.batch_size=4")
SHORT = ("trainer.max_steps=6", "trainer.val_every_steps=6", "trainer.save_every_steps=6")


@pytest.fixture(scope="module")
def reference(group):
    cases = {name: (*PACKED, *own) for name, own in TUNERS.items()}
    cases["rows"] = (*SAME, *TUNERS["full"], *SHORT)
    group.together(1, {f"whole_{name}": overrides for name, overrides in cases.items()}, resume=False)
    return {name: group.done[f"whole_{name}"] for name in cases}


@pytest.fixture(scope="module")
def shared(group):
    cases = {f"shared_{name}": (*PACKED, *own, *SHARED) for name, own in TUNERS.items()}
    group.together(2, cases, resume=True)
    return {name: group.done[f"shared_{name}"] for name in TUNERS}


@pytest.fixture(scope="module")
def variants(group):
    """Name to what it is compared with, once all ran."""
    cache = group.home / "features"
    cases = {
        "full": {"checkpointed": (*PACKED, "memory.checkpointing=full"), "dense": (*PACKED, "model.attention=sdpa")},
        # Micro-batches of one row, of which two thirds are text alone.
        "rows": {"accumulated": (*SAME, "trainer.batch_size=1", "trainer.accumulate=4"), "padded": SAME},
        "lora": {"cached": (*PACKED, "data.vit_cache.mode=always", f"data.vit_cache.folder={cache}")},
    }
    runs = {}
    for against, own in cases.items():
        tuner = TUNERS.get(against, TUNERS["full"])
        runs |= {name: (*tuner, *SHARED, *SHORT, *overrides) for name, overrides in own.items()}
    group.together(2, {f"shared_{name}": overrides for name, overrides in runs.items()}, resume=False)
    return {name: (against, group.done[f"shared_{name}"]) for against, own in cases.items() for name in own}


def hold(figures, one, two, steps):
    """Sums in another order round otherwise, by a part in ten million at first, and what comes of it grows."""
    for key, tolerance in (("train/loss", 1e-5), ("train/grad_norm", 1e-3), ("val/loss", 1e-5)):
        expected, found = figures(one.metrics, key), figures(two, key)
        common = {step: expected[step] for step in found if step in expected}
        for step, value in common.items():
            near = tolerance if step <= 10 else 5 * tolerance
            assert found[step] == pytest.approx(value, abs=near, rel=near), (key, step)
        assert len(common) >= (steps if key.startswith("train") else 1), key


@pytest.mark.slow
@pytest.mark.parametrize("tuner", list(TUNERS))
def test_two_processes_train_as_one(reference, shared, figures, tuner):
    one, two = reference[tuner], shared[tuner]
    hold(figures, one, two.path / "whole.jsonl", 20)
    assert figures(two.metrics, "train/loss") == figures(two.path / "whole.jsonl", "train/loss"), "resumed is another"
    name = "model/model.safetensors" if tuner == "full" else "adapter/adapter_model.safetensors"
    assert_same_weights(load_file(one.path / name), load_file(two.path / name))
    totals = [folder.read_summary()["tokens"] for folder in (one, two)]
    assert totals[0] == totals[1], "tokens count once for the ranks that share them"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpointed", "dense", "accumulated", "padded", "cached"])
def test_settings_change_no_curve(reference, variants, figures, name):
    against, folder = variants[name]
    hold(figures, reference[against], folder.metrics, 6)
    if name == "cached":
        assert folder.read_summary()["vit_cache"]["hit_rate"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_plain_library_loads_the_export(shared, load_model, make_config, tuner):
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    if tuner == "full":
        model = Qwen3VLForConditionalGeneration.from_pretrained(shared[tuner].path / "model")
        assert model.config.text_config._attn_implementation in ("sdpa", "eager")
    else:
        PeftModel.from_pretrained(load_model(make_config().model).model, shared[tuner].path / "adapter")


@pytest.mark.slow
def test_a_run_goes_on_with_one_process(group, shared, figures):
    shutil.copytree(shared["lora"].path, group.home / "alone", symlinks=True)
    alone = RunFolder(group.home / "alone")
    text = alone.config.read_text().replace("devices: 2", "devices: 1")
    alone.config.write_text(text.replace("sequence_parallel: 2", "sequence_parallel: 1"))
    group.run(1, f"{alone.path}@10")
    expected = figures(shared["lora"].metrics, "train/loss")
    assert figures(alone.metrics, "train/loss") == pytest.approx(expected, abs=1e-5) and len(expected) == 20
    assert alone.read_summary()["tokens"] == shared["lora"].read_summary()["tokens"]


@pytest.mark.slow
def test_two_groups_of_two_train_as_one(group, reference, figures):
    """Two micro-batches, each shared by two ranks."""
    own = ("memory.sequence_parallel=2", "trainer.batch_size=2", "memory.checkpointing=selective")
    group.together(4, {"groups": (*SAME, *TUNERS["full"], *SHORT, *own)}, resume=False)
    hold(figures, reference["rows"], group.done["groups"].metrics, 6)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_two_gpus_train_as_one(group, figures, compiled):
    """bfloat16 over NCCL, blocks compiled or not, ViT and aligner trained."""
    gpu = ("trainer.accelerator=gpu", "model.dtype=bfloat16", "trainer.val_batch_size=4", f"trainer.compile={compiled}")
    own = (*PACKED, *TUNERS["dora"], *SHORT, *gpu)
    group.together(1, {f"one_gpu_{compiled}": own}, resume=False)
    group.together(2, {f"two_gpus_{compiled}": (*own, *SHARED)}, resume=False)
    expected = figures(group.done[f"one_gpu_{compiled}"].metrics, "train/loss")
    assert figures(group.done[f"two_gpus_{compiled}"].metrics, "train/loss") == pytest.approx(expected, rel=3e-2)
