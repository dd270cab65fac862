"""doctor.png: histograms of training and validation, and how full batches are."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.logging.plot import TRAIN, VAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"train": TRAIN, "val": VAL}
_SET, _OTHER = TRAIN, "#9aa3b0"


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws what there is into one picture; without data there is none.

    Args:
        report: Content of doctor.json.
        path: The picture to write; its folder exists.
    """
    # Not pyplot: it would choose a backend for the process and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(report["histograms"].items())
    layouts = report.get("batching", {}).get("layouts", [])
    number = len(panels) + bool(layouts)
    if not number:
        return
    columns = min(number, 3)
    lines = -(-number // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * lines + 0.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(report["title"], 60 * columns), fontsize=10)
    grid = figure.add_gridspec(lines, columns)
    for place, (label, found) in enumerate(panels):
        _draw_histograms(figure.add_subplot(grid[divmod(place, columns)]), label, found)
    if layouts:
        _draw_layouts(figure.add_subplot(grid[divmod(number - 1, columns)]), layouts)
    figure.savefig(path)


def _draw_histograms(axes: "Axes", label: str, found: dict[str, Any]) -> None:
    """Draws shares, so that splits of unlike size compare; the last bin is drawn as wide as the others."""
    from matplotlib.ticker import MaxNLocator

    for name, bins in found.items():
        total = sum(count for *_, count in bins)
        width = bins[0][1] - bins[0][0]
        # Bars of whole numbers stand over them.
        shift = 0.5 if width == 1 else 0.0
        edges = [low - shift for low, *_ in bins]
        edges.append(min(bins[-1][1] - shift, edges[-1] + width))
        shares = [100 * count / total for *_, count in bins]
        first = name == "train"
        label_name = f"{name} ({total:,})"
        alpha, line = (0.55, None) if first else (1.0, 1.8)
        axes.stairs(shares, edges, color=_COLOURS[name], label=label_name, fill=first, alpha=alpha, lw=line)
        axes.set_xlim(edges[0] - width / 4, edges[-1] + width / 4)
    rare = f"; last bar: up to {bins[-1][1] - 1:,}" if bins[-1][1] - shift > edges[-1] else ""
    if shift:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{label}{rare}")
    axes.set_ylabel("share (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes)


def _draw_layouts(axes: "Axes", layouts: list[dict[str, Any]]) -> None:
    filled = [100 * row["filled"] for row in layouts]
    bars = axes.barh(range(len(layouts)), filled, color=[_SET if row["set"] else _OTHER for row in layouts], alpha=0.5)
    for bar, value, row in zip(bars, filled, layouts, strict=True):
        long = f", {row['left_out']:,} too long" if row["left_out"] else ""
        name = f"{row['layout']}: {value:.1f} %{long}{', as set' if row['set'] else ''}"
        axes.text(1.5, bar.get_y() + bar.get_height() / 2, name, fontsize=8, va="center")
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of a batch that is tokens (%)")
    _finish(axes)


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
