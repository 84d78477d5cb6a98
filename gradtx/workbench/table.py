"""Tables of numbers that fit into 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

__all__ = ["table_of_numbers"]


def table_of_numbers(title: str, heads: Sequence[str]) -> Table:
    """An empty table of optimizers, and a column of numbers for each head, that fits into 80 columns."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    table.add_column("optimizer")  # broken at its spaces where there is no room; numbers are not
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table
