"""The parts that pictures of all kinds of comparison share: the page, the lines, the axes, labels at their ends."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.isotonic import isotonic_regression

from gradtx.workbench.recipes import ARTICLE, RECIPES, USERS
from gradtx.workbench.settings import Settings

__all__ = [
    "FAINT",
    "HEADING",
    "LINES",
    "STYLE",
    "Curve",
    "Line",
    "draw_curves",
    "draw_heading",
    "height_of_curves",
    "limits",
    "limits_of_losses",
    "line_of",
    "page",
    "panels_of",
    "plot",
    "set_axes",
    "set_heading",
    "spread",
]


class Line(NamedTuple):
    """The colour and the dashes that an optimizer is drawn with."""

    colour: str
    dashes: Any = "-"


class Curve(NamedTuple):
    """A curve with its name at its right end.

    Attributes:
        label: the name.
        values: of each moment, from 0 on.
        line: how it is drawn.
    """

    label: str
    values: np.ndarray
    line: Line


_ORANGE, _VERMILION, _GREEN, _PURPLE, _SKY = "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_BLACK, _BLUE = "#000000", "#0072B2"

_OF_THE_ARTICLE = {
    "sgd": Line(_BLACK),
    "momentum": Line(_BLUE),
    "nag": Line(_BLUE, "--"),  # dashed: the Nesterov form of the solid one of the same colour
    "adagrad": Line(_ORANGE),
    "rmsprop": Line(_VERMILION),
    "adam": Line(_GREEN),
    "max_v": Line(_PURPLE),
    "amsgrad": Line(_SKY),
    "nadam": Line(_GREEN, "--"),
}

_OTHERS = itertools.starmap(
    lambda dashes, colour: Line(colour, dashes),
    itertools.product(
        [":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (8, 2, 2, 2))],
        [_BLACK, _BLUE, _ORANGE, _VERMILION, _GREEN, _PURPLE, _SKY],
    ),
)

LINES = _OF_THE_ARTICLE | {name: next(_OTHERS) for name in RECIPES if name not in ARTICLE}
"""Colours of Okabe & Ito (2008), "Color universal design", which colour-blind readers can tell apart."""

_OF_USERS = [Line(colour, dashes) for dashes in ("-", "--", ":", "-.") for colour in ("#7B4B2A", "#777777")]


def line_of(name: str) -> Line:
    """The line of an optimizer; those of users share eight."""
    return LINES[name] if name in LINES else _OF_USERS[list(USERS).index(name) % len(_OF_USERS)]


FAINT = "#D5D5D5"
"""The colour of what a panel is not about."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "axes.labelcolor": "#333333",
    "lines.solid_capstyle": "round",
}

SMALLEST_LOSS = 1e-8
"""The loss axis ends here: float32 logits resolve no smaller one."""

_LABEL = 0.245
"""The height of a label, in inches."""

HEADING = 0.5
"""The height of a heading that has a figure of its own, in inches."""

WIDTH, DPI = 5.2, 144
"""Inches that a column is wide, so that one can be read on a telephone, too; and dots in an inch."""


def page(
    settings: Settings,
    done: Sequence[Any],
    heights: Sequence[float],
    column: Callable[[Sequence[SubFigure], str], None],
) -> bytes:
    """A PNG with one column for each network, of several figures below each other.

    Args:
        settings: of the comparison.
        done: what is to be drawn, each with its ``network``.
        heights: of the figures of a column, in inches.
        column: draws one, into these figures.
    """
    networks = [name for name in settings.networks if any(each.network == name for each in done)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(networks), sum(heights)), dpi=DPI, layout="constrained")
        figures = figure.subfigures(len(heights), len(networks), squeeze=False, wspace=0.04, height_ratios=heights)
        for name, of_network in zip(networks, figures.T, strict=True):
            column(list(of_network), name)
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15, pil_kwargs={"optimize": True})
    return file.getvalue()


def limits(values: np.ndarray, low: float, high: float, least: float = 100) -> tuple[float, float]:
    """The range of the positive finite values, held within low and high, with a little air; two decades at least.

    Args:
        values: any number of them.
        low, high: what is beyond has no place.
        least: the top is this many times the bottom at least.
    """
    shown = values[np.isfinite(values) & (values > 0)]
    if not shown.size:
        return low, high
    bottom, top = np.clip([shown.min(), shown.max()], low, high).tolist()
    return min(bottom, top / least) / 1.6, top * 1.6


def limits_of_losses(curves: Sequence[np.ndarray], least: float = 100) -> tuple[float, float]:
    """The range of losses, by epoch from before training; ``least`` as in ``limits``."""
    highest = 10 * max((float(losses[0]) for losses in curves if 0 < losses[0] < np.inf), default=1.0)
    return limits(np.concatenate(curves), SMALLEST_LOSS, highest, least)


def set_axes(axes: Axes, last: float, limits: tuple[float, float], first: float = 0, ticks: int = 5) -> None:
    """An axis of epochs or steps, with so many ticks, and a logarithmic one with these limits."""
    axes.set_yscale("log")
    axes.set_ylim(limits)
    axes.set_xlim(first, max(last, first + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=ticks))
    axes.yaxis.set_major_locator(LogLocator(numticks=ticks + 1))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)


def set_heading(axes: Axes, title: str, details: str = "") -> None:
    """A heading in bold, and a line below it that says what else there is to know."""
    axes.set_title(f"{title}\n" if details else title, fontweight="bold", fontsize=12, pad=10)
    if details:
        axes.annotate(
            details, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", color="#555555", fontsize=10
        )


def draw_heading(figure: SubFigure, title: str, details: str) -> None:
    """The same, on a figure of its own, ``HEADING`` inches high: over several axes."""
    figure.text(0.02, 0.6, title, fontweight="bold", fontsize=12)
    figure.text(0.02, 0.15, details, color="#555555")


def plot(axes: Axes, values: np.ndarray, line: Line, width: float, first: int = 0) -> None:
    """A curve up to the top of the axes; if it ends in numbers that are not finite, a cross on the last one that is.

    Args:
        axes: with the limits that it is to have.
        values: by epoch, or by step.
        line: how it is drawn.
        width: of the line.
        first: the number of the first epoch, or step.
    """
    bottom, top = axes.get_ylim()
    x, y = first + np.arange(len(values)), np.minimum(values, top)
    axes.plot(x, y, color=line.colour, linestyle=line.dashes, linewidth=width)
    finite = np.flatnonzero(np.isfinite(values))
    if finite.size and finite.size < len(values):
        end = finite[-1]
        axes.plot(
            x[end],
            max(y[end], bottom),
            "x",
            color=line.colour,
            markersize=7,
            markeredgewidth=2,
            clip_on=False,
            zorder=4,
        )


def height_of_curves(labels: int) -> float:
    """The height, in inches, of a figure of so many curves whose labels are to have room."""
    return max(3.4, 1.0 + _LABEL * labels)


def draw_curves(
    axes: Axes, curves: Sequence[Curve], limits: tuple[float, float], height: float | None = None, first: int = 0
) -> None:
    """Losses by epoch or by step, on axes of these limits.

    Args:
        axes: empty.
        curves: all as long as the first.
        limits: of the loss.
        height: of the figure in inches, if the curves are to have their labels beside their ends.
        first: the number of the first epoch, or step.
    """
    set_axes(axes, first + len(curves[0].values) - 1, limits, first)
    for curve in curves:
        plot(axes, curve.values, curve.line, 1.8 if height else 1.4, first)
    if height:
        lines = 1 + max(curve.label.count("\n") for curve in curves)
        _label_ends(axes, curves, min(_LABEL * lines / (height - 1), 1 / len(curves)))


def _label_ends(axes: Axes, curves: Sequence[Curve], gap: float) -> None:
    """Names beside the right ends of the curves, moved apart where they would overlap."""
    ends = [_end(axes, float(curve.values[-1])) for curve in curves]
    for curve, end, place in zip(curves, ends, spread(ends, gap), strict=True):
        colour, dashes = curve.line
        leader = {"arrowstyle": "-", "color": colour, "linestyle": dashes, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            curve.label,
            xy=(1.005, end),
            xytext=(1.06, place),
            xycoords="axes fraction",
            color=colour,
            verticalalignment="center",
            arrowprops=leader if np.isfinite(curve.values[-1]) else None,
        )


def _end(axes: Axes, loss: float) -> float:
    """The end of a curve, as a fraction of the axis; its top if the loss is not finite."""
    bottom, top = axes.get_ylim()
    if not np.isfinite(loss):
        return 1.0
    return float(np.log(np.clip(loss, bottom, top) / bottom) / np.log(top / bottom))


def spread(places: Sequence[float], gap: float) -> np.ndarray:
    """Places in [0, 1] moved as little as possible (in the mean square), so that any two are ``gap`` apart.

    >>> print(spread([0.5, 0.0, 0.5], 0.1))
    [0.45 0.   0.55]
    """
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = isotonic_regression(np.asarray(places)[order] - steps, y_min=0, y_max=1 - steps[-1]) + steps
    return moved[np.argsort(order)]


def panels_of(figure: SubFigure, titles: Sequence[str], columns: int) -> list[Axes]:
    """A panel for each title, all of one size, with one axis of losses or norms; the lowest ones are numbered."""
    rows = -(-len(titles) // columns)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = list(grid.flat[: len(titles)])
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10, pad=3)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in panels[:-columns]:
        axes.tick_params(labelbottom=False)
    return panels
