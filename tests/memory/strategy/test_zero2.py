from importlib.util import find_spec

import pytest

from harness.errors import UserError


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the deepspeed extra")
@pytest.mark.parametrize("tuner", ["lora", "dora", "full"])
def test_two_processes_train_as_one(check, tuner):
    check("zero2", tuner)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["memory.strategy.reduce_bucket_size=0"], r"memory\.strategy\.reduce_bucket_size=0: must be 1 or more"),
        (["optim=adafactor"], "optim=adafactor: looks at whole matrices or gradients, and memory/strategy=zero2"),
        (["optim=schedule_free"], "optim=schedule_free: keeps an average in the place of weights"),
        (["memory.precision=fp16"], r"memory\.precision=fp16: memory/strategy=zero2 has no scaler"),
    ],
)
def test_what_does_not_go_together_is_refused(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config("memory/strategy=zero2", *overrides)
