"""Tables as text: what trains, and results. Nothing is cut off where the output is no terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = str | int | float | None
"""Integers get thousands separators, floats four significant digits, None a dash."""

_UNBOUNDED = 10_000


def render(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Returns the table as plain text, as wide as its content asks for.

    Args:
        title: Printed above; may be empty.
        columns: Headings.
        rows: As many cells each as there are columns. Columns that hold numbers only are right-aligned.
    """
    console = Console(width=_UNBOUNDED, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(_table(columns, rows))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(([title] if title else []) + lines)


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, console: Console | None = None) -> None:
    """Prints the table on standard output: fitted to a terminal, else as `render` gives it.

    Args:
        title: Printed above; may be empty.
        columns: Headings.
        rows: As many cells each as there are columns.
        console: Where to print instead.
    """
    console = console or Console()
    if not console.is_terminal:
        console.file.write(render(title, columns, rows) + "\n")
        return
    if title:
        console.print(Text(title, style="bold"))
    console.print(_table(columns, rows))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    cells = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for index, heading in enumerate(columns):
        present = [row[index] for row in cells if row[index] is not None]
        numeric = bool(present) and all(
            isinstance(cell, int | float) and not isinstance(cell, bool) for cell in present
        )
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        # Text, because a string is read as markup, and a cell such as [vit] would vanish.
        table.add_row(*(Text(_spell(cell)) for cell in row))
    return table


def _spell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell
