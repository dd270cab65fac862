"""Draws a run's curves from metrics.jsonl into one picture: loss above; metrics, rates and gradient norm below."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.logging.metrics import Row, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = tuple[list[int], list[float]]
"""Steps and values, finite ones only."""

TRAIN, VAL, GRADIENT, MARK = "#4269d0", "#ff725c", "#6b7280", "#b91c1c"
"""Colours of training, validation, gradient norm, and of a step whose loss is not finite."""

_LR = "train/lr/"

MAX_LEGEND = 6
"""Learning rates that the legend names; of more it names the highest and the lowest."""


def plot_curves(metrics_path: Path, png_path: Path) -> None:
    """Draws the curves of one run. Panels without data are left out.

    Args:
        metrics_path: The run's metrics.jsonl.
        png_path: The picture to write; its folder exists.

    Raises:
        UserError: The metrics file is missing or damaged.
    """
    # Not pyplot: it would choose a backend for the process and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(metrics_path)
    panels = [draw for has_data, draw in _PANELS if has_data(rows)]
    figure = Figure(figsize=(10, 7.5 if panels else 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(metrics_path.resolve().parent.name, fontsize=11)
    grid = figure.add_gridspec(2 if panels else 1, max(1, len(panels)), height_ratios=[3, 2] if panels else None)
    top = figure.add_subplot(grid[0, :])
    _draw_loss(top, rows)
    _finish(top, rows)
    for column, draw in enumerate(panels):
        axes = figure.add_subplot(grid[1, column])
        draw(axes, rows)
        _finish(axes, rows)
    figure.savefig(png_path)


def series(rows: list[Row], key: str) -> Series:
    """Returns the steps at which a figure was measured, and its values, without NaN and infinity."""
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def smooth(values: list[float]) -> list[float]:
    """Mean over a window around each point, a twentieth of the run wide: unlike a running mean it does not lag."""
    half = max(1, len(values) // 40)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _metric_keys(rows: list[Row]) -> list[str]:
    """Returns the validation metrics that lie in [0, 1], as accuracies do."""
    keys = sorted({key for row in rows for key in row if key.startswith("val/") and not key.startswith("val/loss")})
    values = {key: series(rows, key)[1] for key in keys}
    return [key for key in keys if values[key] and all(0 <= value <= 1 for value in values[key])]


def _lr_keys(rows: list[Row]) -> list[str]:
    """Returns the key of each group's learning rate, the highest first."""
    keys = {key for row in rows for key in row if key.startswith(_LR)}
    return sorted((key for key in keys if series(rows, key)[1]), key=lambda key: (-max(series(rows, key)[1]), key))


def _draw_loss(axes: "Axes", rows: list[Row]) -> None:
    steps, losses = series(rows, "train/loss")
    smoothed = len(losses) >= 10
    marker = "o" if len(losses) < 10 else None
    if losses:
        axes.plot(steps, losses, color=TRAIN, alpha=0.3 if smoothed else 1, lw=1, ms=4, marker=marker, label="train")
    if smoothed:
        axes.plot(steps, smooth(losses), color=TRAIN, lw=2, label="train, smoothed")
    val_steps, val_losses = series(rows, "val/loss")
    if val_losses:
        axes.plot(val_steps, val_losses, color=VAL, lw=1.2, marker="o", ms=5, label="validation")
    broken = [row["step"] for row in rows if not math.isfinite(row.get("train/loss") or 0.0)]
    if broken:
        axes.axvline(broken[0], color=MARK, ls="--", lw=1.2, label=f"not finite from step {broken[0]}")
    every = losses + val_losses
    if every:
        _scale(axes, every, from_zero=False)
    axes.set_ylabel("loss (nats per supervised token)")
    if every or broken:
        axes.legend(frameon=False, loc="upper right")


def _draw_metrics(axes: "Axes", rows: list[Row]) -> None:
    for key in _metric_keys(rows):
        axes.plot(*series(rows, key), marker="o", ms=4, lw=1.5, label=key.removeprefix("val/"))
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("validation metric (0 to 1)")
    axes.legend(frameon=False, loc="best")


def _draw_lr(axes: "Axes", rows: list[Row]) -> None:
    keys = _lr_keys(rows)
    peaks = []
    named = keys if len(keys) <= MAX_LEGEND else [keys[0], keys[-1]]
    for key, style in zip(keys, ["-", "--", "-.", ":"] * len(keys), strict=False):
        steps, rates = series(rows, key)
        # matplotlib keeps labels that begin with an underscore out of the legend.
        label = key.removeprefix(_LR) if key in named else "_"
        axes.plot(steps, rates, lw=1.8, ls=style, marker="o" if len(rates) < 3 else None, label=label)
        peaks.append(max(rates))
    if min(peaks) > 0 and max(peaks) > 3 * min(peaks):
        # Logarithmic, or the lower rate would look like zero; where they decay to zero they leave the picture.
        axes.set_yscale("log")
        axes.set_ylim(min(peaks) / 100, 2 * max(peaks))
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        _scale(axes, peaks, from_zero=True)
    axes.set_ylabel("learning rate")
    axes.legend(frameon=False, loc="best")


def _draw_gradient(axes: "Axes", rows: list[Row]) -> None:
    steps, norms = series(rows, "train/grad_norm")
    axes.plot(steps, norms, color=GRADIENT, lw=1, marker="o" if len(norms) < 10 else None, ms=4)
    _scale(axes, norms, from_zero=True)
    axes.set_ylabel("gradient norm, before clipping")


def _scale(axes: "Axes", values: list[float], *, from_zero: bool) -> None:
    """Chooses a logarithmic axis where the values span much, else a linear one, from zero if asked for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(values) > 0 and max(values) > 50 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif from_zero and max(values) > 0:
        axes.set_ylim(0, 1.08 * max(values))


def _finish(axes: "Axes", rows: list[Row]) -> None:
    """Gives every panel the same steps, so that what stands above one another happened at one time."""
    from matplotlib.ticker import MaxNLocator

    last = max([1, *(row["step"] for row in rows)])
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


_PANELS: list[tuple[Callable[[list[Row]], bool], Callable[["Axes", list[Row]], None]]] = [
    (lambda rows: bool(_metric_keys(rows)), _draw_metrics),
    (lambda rows: bool(_lr_keys(rows)), _draw_lr),
    (lambda rows: bool(series(rows, "train/grad_norm")[1]), _draw_gradient),
]
"""The lower panels: whether there is something to draw, and what draws it."""
