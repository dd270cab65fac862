import json
from importlib.util import find_spec

import pytest

from harness.errors import UserError
from harness.memory.strategy.deepspeed import read


@pytest.fixture
def write(tmp_path):
    def make(content):
        path = tmp_path / "zero.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return make


def test_what_is_auto_is_left_to_the_run(write):
    """As files for transformers' Trainer are written."""
    path = write(
        {
            "train_batch_size": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "optimizer": "auto",
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "overlap_comm": True},
        }
    )
    assert read(path) == {"zero_optimization": {"stage": 3, "overlap_comm": True}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"memory\.strategy\.file=.*zero\.json: can not be read"),
        ("[]", "must hold one JSON object"),
        ({"gradient_clipping": 1.0}, r"sets gradient_clipping=1\.0: take it out and set optim\.max_grad_norm"),
        ({"optimizer": {"type": "AdamW"}}, r"sets optimizer=.*: take it out and set optim=<name>"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}},
            "sets offload_param to a disk, from which DeepSpeed does not take a run up as it was; use cpu",
        ),
        ({"fp16": {"enabled": True}}, r"sets fp16=.*: take it out and set memory\.precision"),
    ],
)
def test_a_file_that_says_what_the_run_says_is_refused(write, content, message):
    with pytest.raises(UserError, match=message):
        read(write(content))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
@pytest.mark.parametrize("stage", [2, 3])
def test_compiled_layers_train_alike(group, figures, write, stage):
    file = write({"zero_optimization": {"stage": stage}})
    choice = ("tuner=lora", "tuner.dropout=0", "trainer.max_steps=4", "memory/strategy=deepspeed")
    own = (*choice, f"memory.strategy.file={file}")
    cases = {f"zero_file_{stage}_{name}": (*own, f"trainer.compile={name}") for name in ("false", "true")}
    group.together(2, cases, resume=False)
    plain, compiled = (group.done[name] for name in cases)
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        assert figures(compiled.metrics, key) == pytest.approx(figures(plain.metrics, key), rel=1e-4), key
