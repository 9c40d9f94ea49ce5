"""Tables for the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

_WIDTH = 1 << 16
"""Wider than any row, so that each row is one line."""


def show(headings: str, rows: Iterable[Iterable[object]]) -> None:
    """Print a table; `headings` are separated by spaces, and `>` right-aligns a column."""
    table = Table(box=None, pad_edge=False)
    for heading in headings.split():
        side = "right" if heading.startswith(">") else "left"
        table.add_column(heading.removeprefix(">"), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    table_console().print(table)


def table_console(*, wide: bool = False) -> Console:
    """Return a console of the terminal's width; unlimited without a terminal, or with `wide`.

    Markup is off, since texts from a server may have brackets and colons.
    """
    console = Console(markup=False, emoji=False)
    if wide or not console.is_terminal:
        console = Console(width=_WIDTH, markup=False, emoji=False)
    return console


def short(value: float | None) -> str:
    """Format a number with four significant digits."""
    return "-" if value is None else f"{value:.4g}"
