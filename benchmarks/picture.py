"""Pictures: sweeps, as time of a step and time to trace and compile it; and wrappers, as cost beside bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.guards import ADAM_BYTES, BARE, GUARDS
from benchmarks.record import Result
from benchmarks.workloads import Sweep
from gradtx.workbench.picture import STYLE

__all__ = ["draw", "draw_costs"]


class Line(NamedTuple):
    """How a contestant is drawn."""

    colour: str
    marker: str
    dashes: str = "-"


LINES = {
    "gradtx reference": Line("#0072B2", "o"),
    "gradtx native": Line("#D55E00", "s"),
    "gradtx auto": Line("#CC79A7", "P"),
    "gradtx packed": Line("#009E73", "X"),
    "optax": Line("#E69F00", "^"),
    "torch for-loop": Line("#56B4E9", "v", ":"),
    "torch foreach": Line("#56B4E9", "<", "--"),
    "torch fused": Line("#56B4E9", "D"),
    "floor (C)": Line("#000000", "", "--"),
    "handing over": Line("#000000", "", ":"),
}
"""Colours of Okabe & Ito (2008), which colour-blind readers can tell apart; markers and dashes say it again."""


def draw(sweeps: Mapping[str, Sweep], results: Mapping[str, Mapping[int, Result]], caption: str) -> bytes:
    """A PNG with a column for each sweep: a step, with its quartiles, above; tracing and compiling below.

    Args:
        sweeps: what the axes are.
        results: at least one point of each sweep that is to be drawn.
        caption: where and when.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(4.4 * len(results), 7.2), dpi=96, layout="constrained")
        grid = figure.subplots(2, len(results), squeeze=False, sharey="row")
        for (name, points), above, below in zip(results.items(), *grid, strict=True):
            above.set_title(sweeps[name].about, fontweight="bold", pad=8)
            for axes in (above, below):
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_xlabel(sweeps[name].axis)
                axes.tick_params(which="both", length=0, labelleft=True)
            _plot(above, points)
            _plot_compiling(below, points)
        grid[0][0].set_ylabel("one step (seconds)")
        grid[1][0].set_ylabel("trace and compile (seconds)")
        handles = {
            label: handle for axes in grid[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles), frameon=False)
        figure.text(0.005, -0.01, caption, fontsize=8, color="#777777", verticalalignment="top")
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15, pil_kwargs={"optimize": True})
    return file.getvalue()


def _plot(axes: Axes, points: Mapping[int, Result]) -> None:
    for name in dict.fromkeys(name for result in points.values() for name in result.samples):
        found = {at: result.summaries()[name] for at, result in points.items() if name in result.samples}
        line = LINES[name]
        axes.plot(
            list(found),
            [each.median for each in found.values()],
            color=line.colour,
            marker=line.marker,
            linestyle=line.dashes,
            markersize=5,
            label=name,
        )
        low, high = ([getattr(each, side) for each in found.values()] for side in ("low", "high"))
        axes.fill_between(list(found), low, high, color=line.colour, alpha=0.15, linewidth=0)


def _plot_compiling(axes: Axes, points: Mapping[int, Result]) -> None:
    for name, line in LINES.items():
        found = {
            at: result.details[name]["trace_and_compile_s"]
            for at, result in points.items()
            if "trace_and_compile_s" in result.details.get(name, {})
        }
        axes.plot(
            list(found),
            list(found.values()),
            color=line.colour,
            marker=line.marker,
            linestyle=line.dashes,
            markersize=5,
        )


def draw_costs(results: Mapping[str, Result], caption: str) -> bytes:
    """A PNG with a column for each workload of wrappers, and one for tracing and compiling the last of them.

    A row is a wrapper, and its bar ends at its bytes; beside it is what it costs, with quartiles, by each executor.

    Args:
        results: of workloads whose contestants are ``benchmarks.guards.guards``.
        caption: where and when.
    """
    rows = [row for row in GUARDS if row != BARE]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(4.2 * (len(results) + 1), 5.6), dpi=96, layout="constrained")
        *columns, last = figure.subplots(1, len(results) + 1, sharey=True)
        for axes, result in zip(columns, results.values(), strict=True):
            axes.set_title(result.about.rpartition(": ")[2], fontweight="bold", pad=8)
            axes.barh(rows, [GUARDS[row].bytes / ADAM_BYTES for row in rows], color="#dddddd", label="bytes")
            summaries = result.summaries()
            _plot_rows(axes, rows, {name: (x.low, x.median, x.high) for name, x in summaries.items()})
            axes.set_xlabel("one step / that of Adam alone")
        found = [*results.values()][-1].details
        last.set_title("trace and compile", fontweight="bold", pad=8)
        _plot_rows(last, rows, {name: (x["compile_ratio"],) * 3 for name, x in found.items() if "compile_ratio" in x})
        last.set_xlabel("time / that of Adam alone")
        for axes in (*columns, last):
            axes.axvline(1, color="#777777", linewidth=1)
            axes.set_xscale("log")
            axes.set_xticks(ticks := [0.5, 1, 2, 5, 10], [f"{tick:g}" for tick in ticks])
            axes.set_xticks([], minor=True)
            axes.tick_params(which="both", length=0)
        last.invert_yaxis()
        handles, labels = columns[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles), frameon=False)
        figure.text(0.005, -0.01, caption, fontsize=8, color="#777777", verticalalignment="top")
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15, pil_kwargs={"optimize": True})
    return file.getvalue()


def _plot_rows(axes: Axes, rows: Sequence[str], found: Mapping[str, Sequence[float]]) -> None:
    """A mark in each row for each executor, and for optax, of which there are contestants."""
    of = {name: LINES.get(f"gradtx {name}") or LINES[name] for name in ("native", "reference", "auto", "optax")}
    for k, (name, line) in enumerate(of.items()):
        at = [(i, found[f"{row}, {name}"]) for i, row in enumerate(rows) if f"{row}, {name}" in found]
        if not at:
            continue
        heights = [i + 0.2 * (k - 1) for i, _ in at]
        low, median, high = zip(*(x for _, x in at), strict=True)
        axes.hlines(heights, low, high, color=line.colour, linewidth=1.5)
        axes.plot(median, heights, line.marker, color=line.colour, markersize=5, label=name)
