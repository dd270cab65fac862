import pytest

from harness import config
from harness.compose import compose_config
from harness.errors import UserError


def test_frozen_config_reads_back_equal(tmp_path, make_config):
    overrides = ["tuner=dora", "optim.lr=2e-4", "freeze=vit", "trainer.max_steps=7"]
    path = tmp_path / "config.yaml"
    config.save(compose_config(overrides), path)
    assert config.load(path) == make_config(*overrides)


def test_frozen_config_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    config.save(compose_config([]), path)
    path.write_text(path.read_text().replace("rank: 8", "rank: 8\n  rnak: 4"))
    with pytest.raises(UserError, match="rnak"):
        config.load(path)


def test_missing_config_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml: no such file"):
        config.load(tmp_path / "config.yaml")


def test_hash_ignores_what_changes_no_result(make_config):
    base = config.config_hash(make_config())
    assert config.config_hash(make_config("logging=tensorboard", "trainer.log_every_steps=1")) == base
    assert config.config_hash(make_config("tuner.rank=4")) != base
    assert config.config_hash(make_config("seed=1")) != base


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.monitor=val/exact_match", "data.generation.enabled=false"], "set data.generation.enabled=true"),
        (["optim.vit_lr=1e-5"], r"optim\.vit_lr=1e-05: the freeze policy keeps vit frozen"),
        (["seed=5000000000"], "below 2"),
    ],
)
def test_rules_across_groups(make_config, overrides, message):
    with pytest.raises(UserError, match=message):
        make_config(*overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("[1, 2]", "no config of a run"),
        ("model: 3", r"model\.name=None: not the name of an implementation"),
        ("tuner: {name: [lora]}", r"tuner\.name=.*: not the name of an implementation"),
        ("tuner: {name: lora, rank: -1}", r"tuner|is not set"),
        ("seed: ${nothing.there}", "nothing"),
    ],
)
def test_a_damaged_config_is_told_by_its_file(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{path}: .*{message}"):
        config.load(path)
