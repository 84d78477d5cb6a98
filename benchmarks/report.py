"""A run as text: a bar while it runs, tables when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.record import Result
from benchmarks.timing import Summary

__all__ = ["bar", "print_surroundings", "tables"]

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


def tables(name: str, result: Result, room: int) -> list[Table]:
    """Medians, quartiles, and how many times the others' time or memory gradtx takes: ratios apart if there is no room.

    Args:
        name: the workload's.
        result: what came out of it.
        room: the columns that a table may take.
    """
    title = f"[bold]{name}[/]: {result.about}"
    samples, ratios = _samples(result), _ratios(result)
    together = _table(title, {**samples, **ratios})
    if not ratios or Console(width=1000).measure(together).maximum <= room:
        return [together]
    return [_table(title, samples), _table(None, {"": samples[""], **ratios})]


def _table(title: str | None, columns: Mapping[str, Sequence[str]]) -> Table:
    """Columns of text by their heads; the first is aligned left."""
    made = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.show_edge = made.pad_edge = False
    for i, head in enumerate(columns):
        made.add_column(head, justify="right" if i else "left", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        made.add_row(*row)
    return made


def _samples(result: Result) -> dict[str, list[str]]:
    """The columns of what was measured: a row for each contestant."""
    columns: dict[str, list[str]] = {"": list(result.samples), "median": [], "quartiles": [], "least": []}
    for summary in result.summaries().values():
        size, unit = scale(summary.median, result.unit)
        columns["median"].append(f"{summary.median / size:.3g} {unit}")
        columns["quartiles"].append(f"{summary.low / size:.3g} to {summary.high / size:.3g}")
        columns["least"].append(f"{summary.least / size:.3g}")
    seconds = [result.details.get(contestant, {}).get("trace_and_compile_s") for contestant in result.samples]
    if any(second is not None for second in seconds):
        columns["trace and\ncompile"] = ["" if second is None else f"{second:.2f} s" for second in seconds]
    return columns


def _ratios(result: Result) -> dict[str, list[str]]:
    """The columns of how many times each contestant's samples those of gradtx are."""
    return {
        f"{ours}\n÷ this": ["" if contestant == ours else _ratio(ratios[contestant]) for contestant in result.samples]
        for ours in result.ours
        for ratios in [result.ratios(ours)]
    }


def scale(value: float, unit: str) -> tuple[float, str]:
    """The size and the name of the unit that a value is read best in.

    >>> scale(0.0125, "s")
    (0.001, 'ms')
    """
    return next(((size, name) for size, name in SCALES[unit] if value >= size), SCALES[unit][-1])


def _ratio(ratio: Summary) -> str:
    colour = "green" if ratio.median <= 1 else "default" if ratio.median <= PEER else "red"
    median, low, high = (f"{x:.2f}" if x < 10 else f"{x:.3g}" for x in (ratio.median, ratio.low, ratio.high))
    return f"[{colour}]{median}[/] ({low} to {high})"
