"""Every shipped config composes, and configs, implementations and tests go by the same names."""

from pathlib import Path

import pytest
import yaml

from harness import registry
from harness.config import RunConfig

ROOT = Path(__file__).parent.parent
FILES = sorted(registry.CONF.rglob("*.yaml"))
PLACEHOLDERS = {
    "model=qwen3_vl": ["model.path=harness:tiny"],
    "data=files": ["data.train=train.jsonl"],
    "data=jsonl": ["data.train=train.jsonl"],
    "experiment=caption_lora": ["data.train=train.jsonl"],
    "memory/strategy=deepspeed": ["memory.strategy.file=zero.json"],
    "optim=lisa": ["tuner=full"],
    "optim=apollo": ["tuner=full"],
    "optim=apollo_mini": ["tuner=full"],
    "optim=galore": ["tuner=full"],
    "optim=q_galore": ["tuner=full"],
}


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(registry.CONF)))
def test_every_yaml_composes(file, make_config):
    group, option = file.parent.relative_to(registry.CONF).as_posix(), file.stem
    choice = [] if group == "." else [f"{group}={option}"]
    run = make_config(*choice, *PLACEHOLDERS.get("".join(choice), []))
    assert isinstance(run, RunConfig)


@pytest.mark.parametrize("group", registry.GROUPS)
def test_config_implementation_and_test_share_a_name(group):
    registered = set(registry.names(group))
    decorated = {path.stem for path in (ROOT / "harness" / group).glob("*.py") if "@register(" in path.read_text()}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / group).glob("test_*.py")}
    assert registered == decorated
    assert registered <= set(registry.options(group))
    assert registered <= tested


@pytest.mark.parametrize("group", registry.GROUPS)
def test_each_option_begins_with_the_command_and_its_schema(group):
    for option in registry.options(group):
        file = registry.CONF / group / f"{option}.yaml"
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# python -m harness "), file
        schema = yaml.safe_load(text)["defaults"][0]
        assert schema.removeprefix(f"/schema/{group}/") in registry.names(group), file


def test_nothing_but_hydra_is_instantiated_from_conf():
    assert not [file for file in FILES if "_target_" in file.read_text(encoding="utf-8")]
