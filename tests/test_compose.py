"""What a user can type wrong, and what they read then."""

import dataclasses

import pytest

from harness.compose import check
from harness.errors import UserError
from harness.tuner.dora import DoraConfig


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuner.rnak=4", r"tuner\.rnak=4: no such key\. Did you mean tuner\.rank\?"),
        ("+tuner.rnak=4", r"tuner\.rnak=4: no such key\. Did you mean tuner\.rank\?"),
        ("tuner=lorra", r"tuner=lorra: no such option\. Did you mean lora\? Known: .*dora, .*full, .*lora"),
        ("tunr=lora", r"tunr=lora: no such key\. Did you mean tuner\?"),
        ("tuner.rank=abc", r"tuner\.rank=abc: expected int"),
        ("trainer.max_steps=1.5", r"trainer\.max_steps=1\.5: expected int or null"),
        ("optim.schedule.name=cos", r"optim\.schedule\.name=cos: expected cosine \| linear"),
        ("freeze.frozen=[vit,foo]", r"freeze\.frozen\[1\]=foo"),
        ("tuner.rank=0", r"tuner\.rank=0: must be 1 or more"),
        ("tuner.rank", r"tuner\.rank: not of the form key=value"),
        ("model=qwen3_vl", r"model\.path is not set: give model\.path="),
        ("seed=-1", r"seed=-1: must be 0 or more"),
        ("tuner.rank=4,8", r"To sweep over it, add --multirun"),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_remedy(override, message):
    with pytest.raises(UserError, match=message):
        check([override], multirun=False)


def test_unknown_key_is_explained_by_the_chosen_option():
    with pytest.raises(
        UserError,
        match="Known below tuner: " + ", ".join(sorted(field.name for field in dataclasses.fields(DoraConfig))),
    ):
        check(["tuner=dora", "tuner.rslora=true"], multirun=False)


def test_multirun_checks_each_trial_before_the_first_starts():
    assert [run.tuner.rank for run in check(["tuner.rank=4,8"], multirun=True)] == [4, 8]
    with pytest.raises(UserError, match=r"in the trial tuner\.rank=0: tuner\.rank=0: must be 1 or more"):
        check(["tuner.rank=4,0", "hydra.sweep.dir=x"], multirun=True)


@pytest.mark.parametrize("override", ["tuner.rank_pattern={q_proj: 4}", "tuner.rank_pattern.q_proj=4"])
def test_a_map_takes_keys_of_the_users_own(make_config, override):
    assert make_config(override).tuner.rank_pattern == {"q_proj": 4}
    with pytest.raises(UserError, match=r"tuner\.rank_pattern\.q_proj=x: "):
        make_config(override.replace("4", "x"))
