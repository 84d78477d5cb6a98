"""What the pictures of all kinds of comparison share: the page, the lines, the axes, labels at their ends."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.isotonic import isotonic_regression

from gradtx.workbench.recipes import RECIPES
from gradtx.workbench.settings import Settings

__all__ = [
    "LINES",
    "STYLE",
    "Line",
    "draw_losses",
    "limits",
    "limits_of_losses",
    "page",
    "panels_of",
    "plot",
    "set_axes",
    "spread",
]


class Line(NamedTuple):
    """How an optimizer is drawn. The dashed ones are the Nesterov form of the solid one of the same colour."""

    colour: str
    dashes: str = "-"


LINES = {
    "sgd": Line("#000000"),
    "momentum": Line("#0072B2"),
    "nag": Line("#0072B2", "--"),
    "adagrad": Line("#E69F00"),
    "rmsprop": Line("#D55E00"),
    "adam": Line("#009E73"),
    "max_v": Line("#CC79A7"),
    "amsgrad": Line("#56B4E9"),
    "nadam": Line("#009E73", "--"),
}
"""Colours of Okabe & Ito (2008), "Color universal design", which colour-blind readers can tell apart."""

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

COLUMNS = 3
"""Panels of gradient norms side by side."""


def page(
    settings: Settings, done: Sequence[Any], column: Callable[[SubFigure, SubFigure, str, int, int], None]
) -> bytes:
    """A PNG with one column for each network: one picture, and under it a panel for each optimizer.

    Args:
        settings: of the comparison.
        done: what is to be drawn, each with its ``network`` and its ``optimizer``.
        column: draws one.
    """
    networks = [name for name in settings.networks if any(each.network == name for each in done)]
    optimizers = len({each.optimizer for each in done})
    rows, columns = -(-optimizers // COLUMNS), min(COLUMNS, optimizers)
    heights = [4.0, 0.9 + 1.6 * rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8 * len(networks), sum(heights)), dpi=96, layout="constrained")
        halves = figure.subfigures(2, len(networks), squeeze=False, wspace=0.04, height_ratios=heights)
        for name, above, below in zip(networks, *halves, strict=True):
            column(above, below, name, rows, columns)
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15, pil_kwargs={"optimize": True})
    return file.getvalue()


def limits(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range of the positive finite values, held within low and high, with a little air; two decades at least."""
    shown = values[np.isfinite(values) & (values > 0)]
    if not shown.size:
        return low, high
    bottom, top = np.clip([shown.min(), shown.max()], low, high).tolist()
    return min(bottom, top / 100) / 1.6, top * 1.6


def limits_of_losses(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """The range of training losses, by epoch from before training."""
    highest = 10 * max((float(losses[0]) for losses in curves if 0 < losses[0] < np.inf), default=1.0)
    return limits(np.concatenate(curves), SMALLEST_LOSS, highest)


def set_axes(axes: Axes, epochs: int, limits: tuple[float, float]) -> None:
    """An axis of epochs, and a logarithmic one with these limits."""
    axes.set_yscale("log")
    axes.set_ylim(limits)
    axes.set_xlim(0, epochs)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)


def plot(axes: Axes, values: np.ndarray, line: Line, width: float) -> None:
    """A curve; if it ends in numbers that are not finite, a cross on the last one that is."""
    finite = np.flatnonzero(np.isfinite(values))
    cross = finite[-1:].tolist() if len(finite) < len(values) else []
    axes.plot(values, color=line.colour, linestyle=line.dashes, linewidth=width, marker="x", markevery=cross)


def draw_losses(
    figure: SubFigure,
    losses: Mapping[str, np.ndarray],
    limits: tuple[float, float],
    title: str,
    notes: Mapping[str, str],
) -> None:
    """The training loss by epoch, a curve for each optimizer, with its name and a note at its right end."""
    axes = figure.subplots()
    set_axes(axes, len(next(iter(losses.values()))) - 1, limits)
    axes.set_title(title, fontweight="bold", fontsize=12, pad=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss (cross-entropy, nats)")
    for optimizer, values in losses.items():
        plot(axes, values, LINES[optimizer], 1.8)
    _label_ends(axes, {optimizer: float(values[-1]) for optimizer, values in losses.items()}, notes)


def _label_ends(axes: Axes, losses: Mapping[str, float], notes: Mapping[str, str]) -> None:
    """Names beside the right ends of the curves, moved apart where they would overlap."""
    ends = [_end(axes, loss) for loss in losses.values()]
    for (optimizer, loss), end, place in zip(losses.items(), ends, spread(ends, 0.062), strict=True):
        line = LINES[optimizer]
        leader = {"arrowstyle": "-", "color": line.colour, "linestyle": line.dashes, "shrinkB": 0, "relpos": (0, 0.5)}
        axes.annotate(
            RECIPES[optimizer].title + notes[optimizer],
            xy=(1.005, end),
            xytext=(1.06, place),
            xycoords="axes fraction",
            color=line.colour,
            verticalalignment="center",
            arrowprops=leader if np.isfinite(loss) else None,
        )


def _end(axes: Axes, loss: float) -> float:
    """Where a curve ends, as a fraction of the axis; at its top if the loss is not finite."""
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


def panels_of(figure: SubFigure, optimizers: Sequence[str], rows: int, columns: int) -> list[Axes]:
    """A panel for each optimizer, with its name, all on the same axes; the lowest ones are numbered."""
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat[: len(optimizers)])
    for axes, optimizer in zip(panels, optimizers, strict=True):
        axes.set_title(RECIPES[optimizer].title, fontsize=10, pad=3)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in panels[-columns:]:
        axes.tick_params(labelbottom=True)
    return panels
