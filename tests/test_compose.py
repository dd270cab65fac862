"""What a user can type wrong, and what they read then."""

import dataclasses
import shutil

import pytest

from harness import registry
from harness.compose import check, grid
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
        check(["tuner=dora", "tuner.init=pissa"], multirun=False)


def test_multirun_checks_each_trial_before_the_first_starts():
    assert [run.tuner.rank for run in check(["tuner.rank=4,8"], multirun=True)] == [4, 8]
    with pytest.raises(UserError, match=r"in the trial tuner\.rank=0: tuner\.rank=0: must be 1 or more"):
        check(["tuner.rank=4,0", "hydra.sweep.dir=x"], multirun=True)


@pytest.mark.parametrize("override", ["tuner.rank_pattern={q_proj: 4}", "tuner.rank_pattern.q_proj=4"])
def test_a_map_takes_keys_of_the_users_own(make_config, override):
    assert make_config(override).tuner.rank_pattern == {"q_proj": 4}
    with pytest.raises(UserError, match=r"tuner\.rank_pattern\.q_proj=x: "):
        make_config(override.replace("4", "x"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.probe=7"], r"trainer\.probe=7: expected true or false"),
        (["tuner.target_modules=[{a: b}]"], r"tuner\.target_modules=.*: expected list of str"),
        (["tuner.rank_pattern={a: [b]}"], r"tuner\.rank_pattern=.*: expected map of str to int"),
        (["trainer.resume='${nothing}'"], r"nothing"),
        (["tuner.alpha=nan"], r"tuner\.alpha=nan: must be more than 0"),
        (["tuner.lora_plus_ratio=inf"], r"tuner\.lora_plus_ratio=inf: must be more than 0"),
        (["tuner.init=eva", "tuner.eva.rho=nan"], r"tuner\.eva\.rho=nan: must be 1 or more"),
        (["tuner.init=lora_ga", "tuner.lora_ga.gamma=inf"], r"tuner\.lora_ga\.gamma=inf: must be more than 0"),
        (["tuner=adalora", "tuner.orth_reg_weight=nan"], r"tuner\.orth_reg_weight=nan: must be 0 or more"),
        (["tuner=vera", "tuner.d_initial=-1"], r"tuner\.d_initial=-1.0: must be more than 0"),
        (["tuner=fourierft", "tuner.scaling=inf"], r"tuner\.scaling=inf: must be more than 0"),
        (["optim=adafactor", "optim.decay_rate=-2"], r"optim\.decay_rate=-2.0: must be in \[-1, 0\)"),
        (["tuner=full", "optim=apollo", "optim.proj_seed=-1"], r"optim\.proj_seed=-1: must be 0 or more"),
        (["memory/quant=bnb8", "memory.quant.threshold=nan"], r"memory\.quant\.threshold=nan: must be more than 0"),
    ],
)
def test_what_is_no_value_of_a_key_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        check(overrides, multirun=False)


def test_one_and_zero_are_truth_values():
    assert check(["trainer.probe=1"], multirun=False)[0].trainer.probe is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", r"mine\.yaml: not readable as YAML"),
        ("&a [*a]", r"mine\.yaml: .*an anchor holds itself"),
        ("# @package _global_\ntrainer:\n  stps: 3", r"In 'experiment/mine': .*\s.*'stps'"),
        ("# @package _global_\ntrainer: null", r"trainer=null: choose one"),
    ],
)
def test_a_broken_file_of_ones_own_is_told(tmp_path, monkeypatch, content, message):
    shutil.copytree(registry.CONF, tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(content)
    monkeypatch.setattr(registry, "CONF", tmp_path / "conf")
    with pytest.raises(UserError, match=message):
        check(["experiment=mine"], multirun=False)


def test_a_glob_takes_the_options_of_a_group():
    assert grid(["freeze=glob(vit*)"]) == [["freeze=vit"], ["freeze=vit_aligner"]]
    assert grid(["freeze=glob(nope*)"]) == []
