"""Tables of text: columns side by side, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "line", "markdown"]

Cells = Sequence[Sequence[str]]
"""Rows of cells, the head first."""


def aligned(cells: Cells, numbers: int) -> list[str]:
    """A line for each row; the columns from ``numbers`` on are aligned right.

    >>> aligned([["rule", "bytes"], ["rms", "8"]], numbers=1)
    ['rule  bytes', 'rms       8']
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i >= numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def line(lines: Sequence[str]) -> str:
    """A rule as long as the longest of the lines."""
    return "─" * max(map(len, lines))


def markdown(cells: Cells, numbers: int) -> str:
    """The same as a table of Markdown."""
    head, *body = cells
    lines = [head, ["---" if i < numbers else "---:" for i in range(len(head))], *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines)
