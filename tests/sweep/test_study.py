"""Study files: what they make of a command line."""

import pytest
import yaml

from harness import compose, registry
from harness.errors import UserError
from harness.sweep import study as studies

registry.load()


@pytest.fixture
def write(tmp_path):
    def make(**content):
        path = tmp_path / "own.yaml"
        path.write_text(
            yaml.safe_dump({"question": "why?", "axes": {"tuner.rank": [4, 8]}, **content}, sort_keys=False)
        )
        return str(path)

    return make


def test_a_study_is_overrides_and_those_typed_win(write):
    path = write(base=["tuner=dora", "trainer.max_steps=9"], seeds=[1, 2], metric="val/exact_match")
    study, overrides = studies.apply([f"+sweep={path}", "trainer.max_steps=3", "logging=console"], multirun=True)
    assert overrides == [
        "hydra.sweep.dir=outputs/multirun/own",
        "trainer.monitor=val/exact_match",
        "tuner=dora",
        "tuner.rank=4,8",
        "seed=1,2",
        "trainer.max_steps=3",
        "logging=console",
    ]
    assert len(compose.grid(overrides, study.arms)) == 4


def test_an_axis_is_narrowed_and_another_model_has_a_folder_of_its_own(write):
    _, overrides = studies.apply(["tuner.rank=2", f"sweep={write()}", "model=qwen3_vl_4b"], multirun=True)
    assert overrides[0] == "hydra.sweep.dir=outputs/multirun/own_qwen3_vl_4b"
    assert [item for item in overrides if item.startswith("tuner.rank")] == ["tuner.rank=2"]


def test_the_overrides_of_a_method_stay_together(write):
    path = write(methods={"lora": ["tuner=lora"], "dora": ["tuner=dora", "tuner.alpha=3"]})
    study, overrides = studies.apply([f"+sweep={path}"], multirun=True)
    trials = compose.grid(overrides, study.arms)
    assert [(trial[0], "tuner.alpha=3" in trial) for trial in trials] == [
        ("tuner=lora", False),
        ("tuner=lora", False),
        ("tuner=dora", True),
        ("tuner=dora", True),
    ]
    assert study.keys == ["tuner", "tuner.alpha", "tuner.rank"]


def test_what_the_report_has_to_know_is_written(write, tmp_path):
    study, _ = studies.apply([f"+sweep={write(seeds=[3, 4], budget={'steps': 7})}"], multirun=True)
    study.write(tmp_path / "study.yaml")
    assert yaml.safe_load((tmp_path / "study.yaml").read_text()) == {
        "name": "own",
        "question": "why?",
        "metric": "val/loss",
        "mode": "min",
        "seeds": [3, 4],
        "axes": ["tuner.rank", "seed"],
        "methods": {},
        "budget": {"steps": 7},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"question": ""}, "has no question"),
        ({"axes": {}}, "neither axes nor methods"),
        ({"metric": "loss"}, "metric=loss: must be one of val/loss"),
        ({"seeds": [1, 1]}, "holds one twice"),
        ({"seeds": ["x"]}, r"own\.yaml: .*'x'.* could not be converted to Integer"),
        ({"axis": {}}, r"own\.yaml: .*axis"),
        ({"base": ["tuner"]}, r"own\.yaml: tuner: not of the form key=value"),
        ({"base": [["tuner=lora"]]}, r"own\.yaml: base and methods hold overrides, texts"),
        ({"methods": {"a": ["tuner"]}}, r"own\.yaml: tuner: not of the form"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(write, content, message):
    with pytest.raises(UserError, match=message):
        studies.load(write(**content))


def test_a_study_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match=r"sweep=nope: no such study; known: lora_starts, optimizers, rank_lr_freeze"):
        studies.apply(["+sweep=nope"], multirun=True)


def test_a_study_is_no_single_run():
    with pytest.raises(UserError, match="put -m in front"):
        studies.apply(["+sweep=optimizers"], multirun=False)


SIZES = {"rank_lr_freeze": 81, "tuners_equal_parameters": 90, "optimizers": 60, "lora_starts": 105}


@pytest.mark.parametrize("name", studies.names())
def test_shipped_studies_compose(name):
    """The first and the last seed and value of each method."""
    study, overrides = studies.apply([f"+sweep={name}"], multirun=True)
    trials = compose.grid(overrides, study.arms)
    assert len(trials) == SIZES[name]
    per_arm = len(trials) // len(study.arms)
    checked = compose.check_all([trials[number] for number in range(0, len(trials), per_arm)])
    assert all(run.trainer.monitor == study.metric for run in checked.values())
    command = (studies.STUDIES / f"{name}.yaml").read_text().splitlines()[0]
    assert command.startswith(f"# python -m harness -m +sweep={name}")


def test_an_axis_is_narrowed_to_several_values(write):
    _, overrides = studies.apply([f"sweep={write()}", "tuner.rank=2,4", "model=tiny,qwen3_vl_4b"], multirun=True)
    assert overrides[0] == "hydra.sweep.dir=outputs/multirun/own" and "tuner.rank=2,4" in overrides
