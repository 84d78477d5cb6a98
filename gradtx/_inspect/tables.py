"""Tables of text: columns side by side, in a terminal and in a notebook."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence

__all__ = ["aligned", "broken", "columns", "fitted", "line", "markdown", "unbroken", "width"]

Cells = Sequence[Sequence[str]]
"""Rows of cells, the head first."""


def columns() -> int:
    """The width of the terminal that is printed to; 80 where it is none."""
    try:
        terminal = sys.stdout.isatty()
    except (AttributeError, ValueError):  # none, or one that is closed
        terminal = False
    return max(shutil.get_terminal_size().columns, 40) if terminal else 80


def width(text: str) -> int:
    """The columns that a text takes: none for accents, two for the characters of East Asia.

    >>> width("m̂"), width("学")
    (1, 2)
    """
    return sum(
        0 if unicodedata.combining(x) else 2 if unicodedata.east_asian_width(x) in ("W", "F") else 1 for x in text
    )


def aligned(cells: Cells, numbers: int) -> list[str]:
    """A line for each row; the columns from ``numbers`` on are aligned right.

    >>> aligned([["rule", "bytes"], ["rms", "8"]], numbers=1)
    ['rule  bytes', 'rms       8']
    """
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    return [_joined(row, widths, numbers) for row in cells]


def fitted(cells: Cells, numbers: int, most: int) -> list[list[str]]:
    """The lines of each row, at most so wide: texts are broken, those of the widest columns first, and numbers are not.

    >>> fitted([["rule", "slots", "bytes"], ["rms", "s, weight", "8"]], numbers=2, most=19)
    [['rule  slots   bytes'], ['rms   s,          8', '      weight']]
    """
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    words = [max(_least(row[i]) for row in cells) for i in range(len(widths))]
    while sum(widths) + 2 * (len(widths) - 1) > most and max(widths[:numbers], default=0) > 1:
        loose = [i for i in range(numbers) if widths[i] > words[i]] or [i for i in range(1, numbers) if widths[i] > 12]
        loose = loose or range(numbers)  # names, which come first, last
        widths[max(loose, key=lambda i: widths[i])] -= 1
    rows = []
    for row in cells:
        texts = [broken(cell, widths[i]) if i < numbers else [cell] for i, cell in enumerate(row)]
        height = max(map(len, texts))
        filled = [text + [""] * (height - len(text)) for text in texts]
        rows.append([_joined(part, widths, numbers) for part in zip(*filled, strict=True)])
    return rows


def unbroken(cells: Cells, numbers: int) -> int:
    """The columns that a table takes at least, if no word is broken; the columns from ``numbers`` on are one word each.

    >>> unbroken([["rule", "slots", "bytes"], ["rms", "s, weight", "8"]], numbers=2)
    19
    """
    columns = list(zip(*cells, strict=True))
    least = [max(map(_least if i < numbers else width, column)) for i, column in enumerate(columns)]
    return sum(least) + 2 * (len(least) - 1)


def _least(cell: str) -> int:
    """The width of the longest word, the first of them with what it is indented by."""
    first, *words = cell.split() or [""]
    return max(map(width, [cell[: len(cell) - len(cell.lstrip())] + first, *words]))


def _joined(row: Sequence[str], widths: Sequence[int], numbers: int) -> str:
    padding = [" " * (room - width(cell)) for cell, room in zip(row, widths, strict=True)]
    filled = [cell + space for cell, space in zip(row[:numbers], padding, strict=False)]
    filled += [space + cell for cell, space in zip(row[numbers:], padding[numbers:], strict=True)]
    return "  ".join(filled).rstrip()


def broken(text: str, most: int, indent: str = "") -> list[str]:
    """A text as lines, at most so wide: at spaces where there are any, all but the first indented.

    >>> broken("one pass: momentum, rms", 14, indent="    ")
    ['one pass:', '    momentum,', '    rms']
    """
    start = text[: len(text) - len(text.lstrip(" "))]
    lines, empty = [start], True
    for word in text.split():
        if not empty and width(lines[-1]) + 1 + width(word) > most:
            lines.append(indent)
            empty = True
        lines[-1] += word if empty else f" {word}"
        empty = False
        while width(lines[-1]) > most > width(indent) + 1:
            fits = [i for i in range(len(indent) + 1, len(lines[-1])) if width(lines[-1][:i]) <= most]
            at = max((i for i in fits if lines[-1][i - 1] in "=_./"), default=max(fits, default=1))
            lines[-1:] = [lines[-1][:at], indent + lines[-1][at:]]
    return lines


def line(lines: Sequence[str]) -> str:
    """A rule as long as the longest of the lines."""
    return "─" * max(map(width, lines))


def markdown(cells: Cells, numbers: int) -> str:
    """The same as a table of Markdown."""
    head, *body = cells
    lines = [head, ["---" if i < numbers else "---:" for i in range(len(head))], *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines)
