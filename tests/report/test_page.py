"""report.html, in a real browser where there is one."""

import importlib.util
import json
import re
import time
from pathlib import Path

import pytest

from harness.report import page
from harness.report.analysis import analyse
from harness.report.picture import _labels

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium here: apt-get install chromium")


def content(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.fixture
def written(sweep):
    (sweep / "study.yaml").write_text("name: ranks <script>alert(1)</script>\nquestion: which rank?\n")
    path = sweep / "report.html"
    path.write_text(page.render(analyse([sweep])), encoding="utf-8")
    return path


def test_the_page_is_whole_in_itself_and_escaped(written):
    text = written.read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "<script>alert" not in text and "ranks &lt;script&gt;alert(1)" in text
    assert "DivergedError: step 7: loss nan &lt;b&gt;" in text and "<b>" not in text
    data = content(text)
    assert len(data["trials"]) == 27 and len(data["cells"]) == 9 and data["rates"]["axis"] == "optim.lr"
    assert [len(line["points"]) for line in data["rates"]["lines"]] == [3, 3, 3]


def test_no_text_of_a_trial_becomes_markup(tmp_path, make_trial):
    """Names of folders and metrics, keys and values of overrides, errors, packages, hosts: all may be anyone's."""
    hostile = "</script><img src=x onerror=alert(1)>&\"'"
    name = hostile.replace("/", "_")
    folders = [
        make_trial(tmp_path / f"{n}_{name}", seed=n, config={"tuner": {"name": hostile, hostile: hostile}})
        for n in (1, 2)
    ]
    folders.append(make_trial(tmp_path / f"3_{name}", seed=3, status="failed", error=hostile, steps=0))
    for folder in folders[:2]:
        for file in ("summary.json", "environment.json", "trial.json"):
            known = json.loads((folder / file).read_text())
            if file == "summary.json":
                known["val"] |= {f"val/{hostile}": 0.5}
            elif file == "environment.json":
                known["packages"] |= {hostile: hostile}
                known["device"]["name"] = known["platform"] = hostile
            else:
                known["overrides"].append(f"tuner.{hostile}={hostile}")
                known["command"] = f"python -m harness {hostile}"
            (folder / file).write_text(json.dumps(known))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [json.dumps(row | {f"train/loss/{hostile}": 1.0}) + "\n" for row in rows]
        (folder / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "study.yaml").write_text(json.dumps({"name": hostile, "question": hostile}))
    text = page.render(analyse([tmp_path]))
    assert "onerror=alert(1)&gt;" in text and "<img" not in text
    assert text.count("</script>") == text.count("<script") == 2
    # No attribute is left early.
    assert not re.search(r"""<[a-z]+(\s+[a-z-]+(="[^"<]*")?)*\s+onerror""", text)


@needs_browser
def test_a_reader_filters_and_reads(written, tmp_path):
    with browser.page(tmp_path) as tab:
        tab.open(written)
        assert tab.run("document.getElementById('shown').textContent") == "27 of 27 trials"
        assert tab.run("document.querySelector('#leaderboard tbody tr').cells[1].textContent") == "16"
        for chart in ("rates", "heat", "pareto", "importance", "curves", "parallel"):
            assert tab.run(f"document.querySelectorAll('#{chart} svg *').length") > 5
        choose = """(id, value) => {
            const control = document.querySelector(id);
            control.value = value;
            for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind));
        }"""
        tab.run(f"({choose})('select[data-axis=\"tuner.rank\"]', '4')")
        assert tab.run("document.getElementById('shown').textContent") == "9 of 27 trials"
        assert tab.run("document.querySelectorAll('#curves svg path').length") == 9
        assert tab.run("[...document.querySelectorAll('#trials tbody tr')].filter(r => !r.hidden).length") == 9
        tab.run(f"({choose})('#status', 'diverged')")
        assert tab.run("document.getElementById('shown').textContent") == "1 of 27 trials"
        tab.run("document.getElementById('reset').click()")
        tab.run(f"({choose})('#search', 'no such file')")
        assert tab.run("document.getElementById('shown').textContent") == "1 of 27 trials"
        tab.run(f"({choose})('#cost', 'peak_allocated_gib')")
        assert "peak GiB" in tab.run("document.getElementById('pareto').textContent")
        assert tab.messages == []


@needs_browser
def test_a_page_without_results_still_opens(make_trial, tmp_path):
    make_trial(tmp_path / "s" / "0", status="running", steps=3)
    (tmp_path / "report.html").write_text(page.render(analyse([tmp_path / "s"])), encoding="utf-8")
    with browser.page(tmp_path) as tab:
        tab.open(tmp_path / "report.html")
        assert "no trial has completed" in tab.run("document.body.textContent")
        assert tab.run("document.querySelectorAll('#curves svg path').length") == 1 and tab.messages == []


@pytest.mark.slow
def test_a_thousand_trials_take_less_than_five_seconds(make_trial, tmp_path):
    ranks, rates = range(4, 44, 4), [1e-5 * 1.5**n for n in range(20)]
    cells = [(rank, lr, seed) for rank in ranks for lr in rates for seed in range(5)]
    for number, (rank, lr, seed) in enumerate(cells):
        make_trial(tmp_path / "s" / str(number), rank=rank, lr=lr, seed=seed, steps=300)
    # Of this process, which has one thread: the machine may have other work.
    began = time.process_time()
    report = analyse([tmp_path / "s"])
    text = page.render(report)
    taken = time.process_time() - began
    assert len(report.trials) == 1000 and len(report.cells) == 200 and len(text) < 4_000_000
    assert taken < 5


def test_labels_say_what_differs_and_all_of_it():
    shared = "rank=8, freeze=vit, "
    names = [f"{shared}init={'a' * 40}, dropout=0.1", f"{shared}init={'a' * 40}, dropout=0.2"]
    assert _labels(names) == ["dropout=0.1", "dropout=0.2"]
    assert _labels(names[:1])[0].replace("\n", " ") == names[0]
    assert max(len(line) for line in _labels(names[:1])[0].splitlines()) <= 48
