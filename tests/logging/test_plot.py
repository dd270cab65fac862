import math
from pathlib import Path

import pytest
from PIL import Image

from harness.errors import UserError
from harness.logging import plot
from harness.logging.metrics import MetricsFile
from harness.logging.plot import plot_curves, series, smooth


def write(path: Path, rows: list[dict[str, float]]) -> Path:
    with MetricsFile(path) as file:
        for row in rows:
            file.write(int(row["step"]), row)
    return path


def full(steps: int) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "train/loss": 2 / step,
            "train/grad_norm": 1.0 + 100 / step,
            "train/lr/llm": 1e-3 / step,
            "train/lr/vit": 1e-5 / step,
            "val/loss": 3 / step,
            "val/exact_match": 1 - 1 / step,
            "val/perplexity": 12.0,
        }
        for step in range(1, steps + 1)
    ]


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, png: Path) -> list[dict[str, object]]:
    """Returns what each panel shows: its label, and its lines by name."""
    panels = []
    finish = plot._finish

    def record(axes: object, rows: list[dict]) -> None:
        finish(axes, rows)
        lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
        panels.append({"label": axes.get_ylabel(), "x": axes.get_xlabel(), "lines": lines, "scale": axes.get_yscale()})

    monkeypatch.setattr(plot, "_finish", record)
    plot_curves(path, png)
    with Image.open(png) as image:
        assert image.format == "PNG" and image.width == 1500
    return panels


def test_of_many_rates_the_legend_names_the_highest_and_the_lowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {f"train/lr/llm_layer_{number:02d}": 1e-3 / 2**number for number in range(9)}
    path = write(tmp_path / "metrics.jsonl", [{"step": step, "train/loss": 1.0} | rates for step in (1, 2, 3)])
    panel = drawn(monkeypatch, path, tmp_path / "curves.png")[1]
    named = {str(label) for label in panel["lines"] if not str(label).startswith("_")}
    assert named == {"llm_layer_00", "llm_layer_08"}


def test_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "metrics.jsonl", full(60))
    loss, metrics, rates, gradient = drawn(monkeypatch, path, tmp_path / "curves.png")
    assert {panel["x"] for panel in (loss, metrics, rates, gradient)} == {"optimiser step"}
    assert list(loss["lines"]) == ["train", "train, smoothed", "validation"]
    assert list(metrics["lines"]) == ["exact_match"]
    assert list(rates["lines"]) == ["llm", "vit"]
    assert "learning rate" in rates["label"] and "gradient norm" in gradient["label"]
    assert (loss["scale"], rates["scale"]) == ("log", "log")


def test_few_points_are_not_smoothed_and_need_no_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": step, "train/loss": 1.0 + step} for step in (5, 10)]
    (loss,) = drawn(monkeypatch, write(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert loss["lines"] == {"train": [5, 10]}
    assert loss["scale"] == "linear"


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"step": 0, "val/loss": 2.0}]])
def test_almost_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float]]
) -> None:
    panels = drawn(monkeypatch, write(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert [list(panel["lines"]) for panel in panels] == [["validation"] if len(rows) and len(rows[0]) > 1 else []]


def test_a_loss_that_is_not_finite_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": step, "train/loss": math.nan if step > 2 else 1.0} for step in range(1, 5)]
    (loss,) = drawn(monkeypatch, write(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert loss["lines"] == {"train": [1, 2], "not finite from step 3": [3, 3]}


def test_series_leaves_out_what_is_missing_or_not_finite() -> None:
    rows = [{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": math.inf}, {"step": 4, "a": 2}, {"step": 5, "a": None}]
    assert series(rows, "a") == ([1, 4], [1.0, 2.0])


def test_smoothing_keeps_a_constant_and_does_not_lag() -> None:
    assert smooth([2.0] * 50) == [2.0] * 50
    line = [float(value) for value in range(100)]
    assert smooth(line)[10:90] == pytest.approx(line[10:90])


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
