"""The script behind docs/tuners.md, on results made up here; no run is started but one that can not begin."""

import json
import re

import pytest
import tuner_table
import tuner_tables

from harness import registry
from harness.compose import compose_config
from harness.config import to_run_config

registry.load()
PLACES = "".join(
    f"<!-- {name} -->\nstale\n<!-- end -->\n\n" for name in ("methods", "variants", "optimizers", "digits")
)


def entry(table, method, accuracy=0.5, **changes):
    made = {
        "table": table,
        "method": method,
        "phase": "report",
        "lr": 3e-3,
        "seed": 1,
        "status": "completed",
        "error": None,
        "val": {"val/exact_match": accuracy, "val/loss": 1.0 - accuracy},
        "trainable_parameters": 52224,
        "tokens_per_s": 1234.6,
        "wall_time_s": 20.0,
        "peak_allocated_gib": None,
        "peak_rss_gib": 0.64,
        "cpu_time_s": 31.0,
        "device": "cpu",
    } | changes
    return {"key": f"{table}_{method}_{made['phase']}_{made['lr']}_{made['seed']}"} | made


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tuners.md").write_text(f"# Tuners\n\n{PLACES}prose\n")
    return folder


@pytest.fixture
def render(docs, tmp_path):
    def make(*entries):
        path = tmp_path / "results.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in entries))
        tuner_tables.render([path], tuner_table.TABLE, docs)
        return (docs / "tuners.md").read_text()

    return make


def chosen(*methods, lr=3e-3):
    """Runs that choose the rate at which entries are made up."""
    return [entry("digits", method, phase="choose", seed=0, lr=lr) for method in methods]


def test_digits_are_ranked_by_mean_and_overlap_is_said(render):
    seeds = (1, 2, 3)
    text = render(
        *(entry("digits", "lora", score, seed=seed) for seed, score in zip(seeds, (0.90, 0.92, 0.94), strict=True)),
        *(entry("digits", "dora", score, seed=seed) for seed, score in zip(seeds, (0.93, 0.95, 0.97), strict=True)),
        *(
            entry("digits", "full", score, seed=seed, lr=1e-2)
            for seed, score in zip(seeds, (0.5, 0.6, 0.7), strict=True)
        ),
        *chosen("lora", "dora"),
        *chosen("full", lr=1e-2),
        entry("digits", "vera", 0.99, phase="choose"),
        entry("digits", "bone", status="diverged", error="DivergedError: nan"),
    )
    rows = [line for line in text.splitlines() if line.startswith(("| dora | 0", "| lora | 0", "| full | 0"))]
    assert rows == [
        "| dora | 0.9500 | 0.9300 to 0.9700 | 3 | 0.003 | 52,224 | 31 | 0.64 |",
        "| lora | 0.9200 | 0.9000 to 0.9400 | 3 | 0.003 | 52,224 | 31 | 0.64 |",
        "| full | 0.6000 | 0.5000 to 0.7000 | 3 | 0.01 | 52,224 | 31 | 0.64 |",
    ]
    assert "their ranges overlap: lora.\n" in text
    missing = next(line for line in text.splitlines() if line.startswith("Without a completed run"))
    assert "vera" in missing and "bone" in missing and "dora" not in missing
    assert "Measured on cpu." in text and "stale" not in text and text.endswith("prose\n")


def test_a_rate_at_the_edge_of_the_grid_is_marked(render):
    rates = {"lora": 3e-2, "dora": 1e-2}
    entries = [entry("digits", name, lr=lr) for name, lr in rates.items()]
    text = render(*entries, *(run for name, lr in rates.items() for run in chosen(name, lr=lr)))
    assert "| 0.03* |" in text and "| 0.01 |" in text


def test_speed_and_memory_stand_beside_the_paper_and_errors_in_their_place(render):
    text = render(
        entry(
            "gpu", "lora", tokens_per_s=8349.4, peak_allocated_gib=15.91, trainable_parameters=16515072, device="H100"
        ),
        entry("gpu", "dora", status="out_of_memory", error="OutOfMemoryError: CUDA | out\nmore"),
        entry("optimizers", "lion", tokens_per_s=99.0, peak_allocated_gib=70.0, device="H100"),
    )
    paper = "[2106.09685](https://arxiv.org/abs/2106.09685) | `W x + (alpha / r) B A x`"
    assert f"{paper} | 16,515,072 | 8,349 | 15.9 | H100 |" in text
    assert "| out_of_memory: OutOfMemoryError: CUDA / out |  |  |  |" in text
    assert "| `optim=lion` | 52,224 | 99 | 70.0 | H100 |" in text
    assert text.count("not measured") > 10


def test_later_results_replace_those_stored_and_others_stay(render, docs):
    render(entry("digits", "lora", 0.1), entry("digits", "dora", 0.2), *chosen("lora", "dora"))
    text = render(entry("digits", "lora", 0.7))
    assert "| lora | 0.7000" in text and "| dora | 0.2000" in text
    assert len(json.loads((docs / "results" / "tuners_digits.json").read_text())) == 4


def test_reports_at_another_rate_than_the_chosen_one_do_not_count(render):
    old, new = entry("digits", "lora", 0.1, lr=1e-2), entry("digits", "lora", 0.7, lr=3e-2)
    text = render(old, new, entry("digits", "lora", 0.2, phase="choose", lr=1e-2), *chosen("lora", lr=3e-2))
    assert "| lora | 0.7000 | 0.7000 to 0.7000 | 1 | 0.03* |" in text


def test_every_row_of_a_table_has_as_many_cells(render):
    text = render(entry("digits", "lora"), entry("gpu", "lora"), *chosen("lora"))
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_rate_is_chosen_on_held_out_rows_and_what_is_done_is_not_run_again(tmp_path, monkeypatch):
    started = []

    def measure(run, folder):
        started.append(run)
        accuracy = {1e-3: 0.6, 3e-3: 0.9, 1e-2: 0.9, 3e-2: 0.1}[run.lr]
        made = entry(run.table, run.method, accuracy, phase=run.phase, lr=run.lr, seed=run.seed)
        made["val"]["val/loss"] = run.lr
        return made | {"key": run.key}

    monkeypatch.setattr(tuner_table, "measure", measure)
    args = type("Args", (), {"out": tmp_path, "jobs": 1, "stop_after": 60})
    tuner_table.digits(args, ["lora"])
    tuner_table.digits(args, ["lora"])
    assert [(run.phase, run.lr, run.seed) for run in started] == [
        *(("choose", lr, 0) for lr in (1e-3, 3e-3, 1e-2, 3e-2)),
        *(("report", 3e-3, seed) for seed in (1, 2, 3)),
    ]
    assert [any(item.startswith("data.held_out") for item in run.overrides) for run in started] == [True] * 4 + [
        False
    ] * 3


def test_a_run_that_can_not_begin_gives_its_message(tmp_path):
    run = tuner_table.Run("digits", "lora", "report", 1e-3, 1, ("tuner=lora", "tuner.rank=0"))
    made = tuner_table.measure(run, tmp_path / "runs" / "a")
    assert made["status"] == "failed" and "tuner.rank=0: must be 1 or more" in made["error"]


def test_papers_are_texts_and_not_numbers_that_lose_a_zero():
    for name, method in tuner_table.TABLE["methods"].items():
        assert re.fullmatch(r"\d{4}\.\d{5}|none|PEFT's own", method["paper"]), name


def test_every_tuner_and_optimizer_has_a_row():
    chosen = [choice for method in tuner_table.TABLE["methods"].values() for choice in method["choice"]]
    assert {f"tuner={name}" for name in registry.names("tuner")} <= set(chosen)
    optimizers = [choice for choices in tuner_table.TABLE["optimizers"].values() for choice in choices]
    assert {f"optim={name}" for name in registry.names("optim")} <= set(optimizers)


@pytest.mark.parametrize("name", tuner_table.TABLE["methods"])
def test_settings_of_methods_compose(name):
    method = tuner_table.TABLE["methods"][name]
    (run,) = tuner_table.digits_runs(name, "choose", tuner_table.rates(name)[:1], (0,))
    to_run_config(compose_config(run.overrides))
    gpu = [*tuner_table.GPU, "model.path=folder", "data.train=train.jsonl", *method["choice"], *method.get("gpu", [])]
    to_run_config(compose_config(gpu))


@pytest.mark.parametrize("name", tuner_table.TABLE["optimizers"])
def test_optimizers_compose(name):
    to_run_config(compose_config(["tuner=full", *tuner_table.TABLE["optimizers"][name]]))
