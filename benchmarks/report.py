"""A run as text: a bar while it runs, tables when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.record import Result
from benchmarks.timing import Summary

__all__ = ["bar", "print_surroundings", "table"]

SCALES = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
    "ratio": [(1.0, "× optax")],
    "cost": [(1.0, "× Adam")],
    "bytes": [(2**20, "MiB"), (2**10, "KiB"), (1, "B")],
}
PEER = 1.05
"""Up to this ratio two contestants are as fast as each other."""


def bar() -> Progress:
    """A progress bar on stderr; nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("rounds"), TimeElapsedColumn(), "{task.description}")
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_surroundings(where: Mapping[str, Any], console: Console) -> None:
    """Where and when."""
    machine = where["machine"]
    load = "" if machine["load_before"] is None else f", load {machine['load_before']:.1f} before the run"
    console.print(f"{machine['processor']}, {machine['cores']} cores{load}; {where['date']}", highlight=False)
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items() if number)
    console.print(f"{versions}; commit {(where['commit'] or 'unknown')[:12]}\n", highlight=False)


def table(name: str, result: Result) -> Table:
    """Medians, quartiles, and how many times the others' time (or memory) gradtx takes."""
    title = f"[bold]{name}[/]: {result.about}"
    made = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.show_edge = made.pad_edge = False
    made.add_column("", no_wrap=True)
    for head in ["median", "quartiles", "least", *(f"{ours}\n÷ this" for ours in result.ours)]:
        made.add_column(head, justify="right", no_wrap=True)
    compiled = any("trace_and_compile_s" in own for own in result.details.values())
    if compiled:
        made.add_column("trace and\ncompile", justify="right", no_wrap=True)
    ratios = {ours: result.ratios(ours) for ours in result.ours}
    for contestant, found in result.summaries().items():
        size, unit = scale(found.median, result.unit)
        seconds = result.details.get(contestant, {}).get("trace_and_compile_s")
        made.add_row(
            contestant,
            f"{found.median / size:.3g} {unit}",
            f"{found.low / size:.3g} to {found.high / size:.3g}",
            f"{found.least / size:.3g}",
            *("" if ours == contestant else _ratio(ratios[ours][contestant]) for ours in result.ours),
            *([f"{seconds:.2f} s" if seconds is not None else ""] if compiled else []),
        )
    return made


def scale(value: float, unit: str) -> tuple[float, str]:
    """The size and the name of the unit that a value is read best in.

    >>> scale(0.0125, "s")
    (0.001, 'ms')
    """
    return next(((size, name) for size, name in SCALES[unit] if value >= size), SCALES[unit][-1])


def _ratio(found: Summary) -> str:
    colour = "green" if found.median <= 1 else "default" if found.median <= PEER else "red"
    return f"[{colour}]{found.median:.2f}[/] ({found.low:.2f} to {found.high:.2f})"
