"""`trainer.resume`: which overrides a run goes on with, and what it refuses to go on with."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from harness import config
from harness.compose import compose_config
from harness.errors import UserError
from harness.experiment.resume import apply

STARTED = ("tuner=dora", "tuner.rank=4", "trainer.max_steps=2")


@pytest.fixture
def make_run(tmp_path):
    """Leaves a run folder as Hydra and the trial do: overrides, config, status."""

    def make(*overrides: str, name: str = "run") -> Path:
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
        config.save(compose_config(overrides), folder / "config.yaml")
        (folder / "status.json").write_text('{"state": "preempted"}')
        return folder

    return make


def values(overrides):
    """The overrides as Hydra reads them, by key; the last one of a key wins, as in Hydra."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {item.get_key_element(): item.value() for item in parsed}


@pytest.mark.parametrize("given", [[], ["trainer.resume=null"], ["tuner.rank=4", "hydra.run.dir=/nowhere/yet"]])
def test_without_resume_the_overrides_stay_as_they_are(given):
    assert apply(given) == given


def test_a_used_run_folder_is_refused_before_hydra_writes_into_it(make_run):
    folder = make_run(*STARTED)
    with pytest.raises(UserError, match=rf"hydra\.run\.dir={folder} already holds a run: go on with trainer\.resume="):
        apply([f"hydra.run.dir={folder}"])


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_run_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"trainer\.resume={tmp_path / name}: no run folder"):
        apply([f"trainer.resume={tmp_path / name}"])


def test_overrides_of_the_run_come_first_and_new_ones_win(make_run):
    folder = make_run(*STARTED)
    merged = apply([f"trainer.resume={folder}", "trainer.max_steps=5", "trainer.log_every_steps=1"])
    assert merged[:4] == ["tuner=dora", "tuner.rank=4", "trainer.max_steps=5", "trainer.log_every_steps=1"]
    run = config.to_run_config(compose_config([item for item in merged if not item.startswith("hydra.")]))
    assert (run.tuner.name, run.tuner.rank, run.trainer.max_steps) == ("dora", 4, 5)
    assert values(merged)["hydra.run.dir"] == run.trainer.resume == str(folder)


def test_a_run_can_be_resumed_again_and_again(make_run):
    """The second time the stored overrides hold trainer.resume themselves."""
    folder = make_run(*STARTED)
    once = [item for item in apply([f"trainer.resume={folder}"]) if not item.startswith("hydra.")]
    OmegaConf.save(OmegaConf.create(once), folder / ".hydra" / "overrides.yaml")
    again = apply([f"trainer.resume={folder}", "trainer.max_steps=5"])
    assert [item.partition("=")[0] for item in again].count("trainer.resume") == 1
    assert values(again)["trainer.max_steps"] == 5


@pytest.mark.parametrize("quote", [None, Quote.single, Quote.double], ids=["bare", "single", "double"])
@pytest.mark.parametrize("name", ["a=b, c", 'it\'s "here"', "'quoted'", "back\\slash", "(a) [b] ü"])
def test_a_folder_of_any_name_survives(make_run, name, quote):
    folder = make_run(*STARTED, name=name)
    typed = folder if quote is None else QuotedString(str(folder), quote).with_quotes()
    found = values(apply([f"trainer.resume={typed}"]))
    assert (found["hydra.run.dir"], found["trainer.resume"]) == (str(folder), str(folder))


def test_auto_without_a_fixed_folder_starts_anew():
    given = ["trainer.resume=auto", "tuner.rank=4"]
    assert apply(given) == given


def test_auto_in_a_folder_without_a_run_starts_there(tmp_path):
    given = ["trainer.resume=auto", f"hydra.run.dir={tmp_path}"]
    assert apply(given) == given


def test_auto_in_a_fixed_folder_goes_on_there(make_run):
    folder = make_run(*STARTED)
    found = values(apply(["trainer.resume=auto", f"hydra.run.dir={folder}", *STARTED]))
    assert (found["trainer.resume"], found["hydra.run.dir"]) == ("auto", str(folder))


@pytest.mark.parametrize("how", ["path", "auto"])
def test_what_trains_otherwise_is_refused_by_name(make_run, how):
    folder = make_run(*STARTED)
    asked = [f"trainer.resume={folder}"] if how == "path" else ["trainer.resume=auto", f"hydra.run.dir={folder}"]
    with pytest.raises(UserError, match=r"differs from the run's own: seed: 42 -> 7; tuner\.rank: 4 -> 8$"):
        apply([*asked, "tuner.rank=8", "seed=7"])


def test_forced_it_goes_on_and_shows_what_is_otherwise(make_run, capsys):
    folder = make_run(*STARTED)
    forced = apply([f"trainer.resume={folder}", "tuner.rank=8", "trainer.force_resume=true"])
    assert values(forced)["tuner.rank"] == 8
    warned = "warning: trainer.force_resume: "
    assert f"{warned}trainer.resume={folder}: the config differs from the run's own: tuner.rank: 4 -> 8" in (
        capsys.readouterr().err
    )
    own = [item for item in forced if not item.startswith("hydra.")]
    OmegaConf.save(OmegaConf.create(own), folder / ".hydra" / "overrides.yaml")
    config.save(compose_config(own), folder / "config.yaml")
    assert "trainer.force_resume" not in values(apply([f"trainer.resume={folder}"])), "it holds for one resume"


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("trainer.devices=2", r"trainer\.devices: 1 -> 2"),
        ("trainer.batch_size=8", r"trainer\.batch_size: 16 -> 8"),
        ("tuner=lora", r"tuner\.name: dora -> lora"),
        ("data.train_rows=8", r"data\.train_rows: None -> 8"),
    ],
)
def test_what_changes_the_curve_counts_as_drift(make_run, override, change):
    folder = make_run(*STARTED)
    with pytest.raises(UserError, match=change):
        apply([f"trainer.resume={folder}", override])


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_steps=9",
        "trainer.keep_checkpoints=1",
        "trainer.load_best=true",
        "trainer.async_save=true",
        "trainer.on_save_error=stop",
        "data.workers=0",
        "logging=tensorboard",
    ],
)
def test_what_may_change_changes(make_run, override):
    assert override in apply([f"trainer.resume={make_run(*STARTED)}", override])


@pytest.mark.parametrize("fewer", [["trainer.batch_size=16"], ["trainer.accumulate=2"]])
@pytest.mark.parametrize(
    "data", [[], ["data.packing=true", "data.packing_length=64"], ["data.group_by_length=true"]], ids=" ".join
)
def test_another_number_of_processes_may_go_on_with_the_same_global_batch(make_run, data, fewer):
    folder = make_run(*STARTED, "trainer.devices=2", "trainer.batch_size=8", *data)
    assert set(fewer) <= set(apply([f"trainer.resume={folder}", "trainer.devices=1", *fewer]))


@pytest.mark.parametrize(
    ("started", "changed", "reason"),
    [
        ([], [], r"a step would take 8 rows and not 16: set trainer\.batch_size or trainer\.accumulate"),
        (
            ["data=jsonl", "data.train=rows.jsonl", "data.streaming=true"],
            ["trainer.batch_size=16"],
            "streams are dealt",
        ),
        (["memory/strategy=zero2"], ["trainer.batch_size=16"], "memory/strategy=zero2 hold a part for each process"),
    ],
)
def test_another_number_of_processes_is_refused_where_steps_or_checkpoints_would_not_fit(
    make_run, started, changed, reason
):
    folder = make_run(*STARTED, "trainer.devices=2", "trainer.batch_size=8", *started)
    with pytest.raises(UserError, match=rf"trainer\.devices: 2 -> 1: .*{reason}"):
        apply([f"trainer.resume={folder}", "trainer.devices=1", *changed])


SHARING = ("trainer.devices=2", "memory.sequence_parallel=2", "trainer.batch_size=8")


def test_one_process_may_go_on_where_two_shared_sequences(make_run):
    folder = make_run(*STARTED, *SHARING)
    alone = ["trainer.devices=1", "memory.sequence_parallel=1"]
    assert set(alone) <= set(apply([f"trainer.resume={folder}", *alone]))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (["trainer.devices=4"], r"a step would take 16 rows and not 8"),
        (["memory.sequence_parallel=1"], r"memory\.sequence_parallel: 2 -> 1"),
    ],
)
def test_sharing_otherwise_is_refused_where_steps_would_be_others(make_run, changed, reason):
    folder = make_run(*STARTED, *SHARING)
    with pytest.raises(UserError, match=reason):
        apply([f"trainer.resume={folder}", *changed])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- `a`", r"overrides\.yaml: not readable as YAML"),
        ("a: b", r"overrides\.yaml: holds no list of overrides"),
        ("- [a]", r"overrides\.yaml: holds no list of overrides"),
        ("- +hydra.callbacks.it={_target_:os.getcwd}", r"overrides\.yaml: \+hydra\..*: a setting of Hydra's own"),
        ("- optim", r"overrides\.yaml: optim: not of the form"),
        ("- hydra/launcher=pool", r"overrides\.yaml: hydra/launcher=pool: a setting of Hydra's own"),
        ("- +tuner@hydra.callbacks.it=lora", r"a setting of Hydra's own"),
        ("- tuner.rnak=4", r"with the overrides of that run: tuner\.rnak=4: no such key"),
    ],
)
def test_damaged_overrides_are_told_by_their_run(make_run, content, message):
    folder = make_run(*STARTED)
    (folder / ".hydra" / "overrides.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"{folder}.*{message}"):
        apply([f"trainer.resume={folder}"])
