import io

import pytest
from rich.console import Console

from harness.logging.table import render, show

COLUMNS = ["component", "parameters", "share %", "trains"]
ROWS = [["llm", 1_720_574_976, 81.25, True], ["vit", 405_000_000, 19.0, False], ["[aligner]", None, None, False]]


def test_numbers_are_right_aligned_and_spelled() -> None:
    assert render("what trains", COLUMNS, ROWS).splitlines() == [
        "what trains",
        "component      parameters   share %   trains",
        "────────────────────────────────────────────",
        "llm         1,720,574,976     81.25   yes",
        "vit           405,000,000        19   no",
        "[aligner]               -         -   no",
    ]


def test_nothing_is_cut_however_wide() -> None:
    long = "x" * 300
    assert long in render("", ["name", "value"], [[long, 1]])


def test_no_rows_leaves_the_headings() -> None:
    assert "component" in render("", COLUMNS, [])


def test_show_prints_the_plain_table_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show("what trains", COLUMNS, ROWS)
    assert capsys.readouterr().out == render("what trains", COLUMNS, ROWS) + "\n"


def test_show_folds_to_a_terminal() -> None:
    stream = io.StringIO()
    show("title", ["name"], [["y" * 90]], console=Console(file=stream, force_terminal=True, width=40))
    assert stream.getvalue().count("y") == 90
    assert all(len(line) < 80 for line in stream.getvalue().splitlines())
