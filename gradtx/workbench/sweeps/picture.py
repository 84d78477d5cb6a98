"""Sweeps as a picture: the best curves, and under them the loss by learning rate, a panel for each optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from gradtx.workbench.picture import (
    FAINT,
    Curve,
    draw_curves,
    height_of_curves,
    limits_of_losses,
    line_of,
    page,
    panels_of,
    set_heading,
)
from gradtx.workbench.recipes import recipe_of
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweeps.sweep import RATES, Sweep

__all__ = ["draw_sweeps"]

GREY = "#777777"

COLUMNS = 3
"""Panels side by side."""


def draw_sweeps(settings: Settings, sweeps: Sequence[Sweep]) -> bytes:
    """A PNG with one column for each network: each optimizer's best training, then how it depends on the learning rate.

    Panels have the same axes. In each, a line is the mean of the training loss at the end over the seeds, the band goes
    from the lowest to the highest of them, the dot is the best learning rate, and the bar shows which train; the other
    optimizers' lines are grey. What is not finite leaves the panel at its top.

    Args:
        settings: of the comparison.
        sweeps: at least one.
    """
    limits = limits_of_losses([curve for sweep in sweeps for curve in sweep.curves.reshape(-1, sweep.curves.shape[-1])])

    number = len({sweep.optimizer for sweep in sweeps})
    above, columns = height_of_curves(number), min(COLUMNS, number)

    def column(figures: Sequence[SubFigure], name: str) -> None:
        of_network = [sweep for sweep in sweeps if sweep.network == name]
        axes = figures[0].subplots()
        draw_curves(axes, [_best(sweep) for sweep in of_network], limits, above)
        set_heading(axes, settings.title(name), settings.details)
        axes.set_xlabel("epoch, each at its best learning rate")
        axes.set_ylabel("training loss (cross-entropy, nats)")
        titles = [recipe_of(sweep.optimizer).title for sweep in of_network]
        for panel, sweep in zip(panels_of(figures[1], titles, columns), of_network, strict=True):
            _set_axes(panel, limits)
            for other in of_network:
                panel.plot(other.rates, _held(other.losses, limits).mean(axis=1), color=FAINT, linewidth=0.8)
            _draw_sweep(panel, sweep, limits)
        figures[1].supxlabel("learning rate", fontsize=10, color="#333333")
        figures[1].supylabel(f"training loss after epoch {settings.epochs}", fontsize=10, color="#333333")
        _explain(figures[1], settings)

    return page(settings, sweeps, [above, 1.1 + 1.4 * -(-number // columns)], column)


def _best(sweep: Sweep) -> Curve:
    """The training loss with the best learning rate, by epoch."""
    label = f"{recipe_of(sweep.optimizer).title} {sweep.rates[sweep.best]:.2g}"
    return Curve(label, sweep.curves[sweep.best].mean(axis=0), line_of(sweep.optimizer))


def _held(losses: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Losses that can be drawn: those above the panel, or not finite, not far above it."""
    return np.clip(losses, limits[0] / 10, limits[1] * 10)


def _set_axes(axes: Axes, limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(RATES[0], RATES[-1])
    axes.set_ylim(limits)
    for axis, ticks in ((axes.xaxis, 4), (axes.yaxis, 6)):
        axis.set_major_locator(LogLocator(numticks=ticks))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0)


def _draw_sweep(axes: Axes, sweep: Sweep, limits: tuple[float, float]) -> None:
    line, losses = line_of(sweep.optimizer), _held(sweep.losses, limits)
    axes.fill_between(sweep.rates, losses.min(axis=1), losses.max(axis=1), color=line.colour, alpha=0.2, linewidth=0)
    axes.plot(sweep.rates, losses.mean(axis=1), color=line.colour, linestyle=line.dashes, linewidth=1.6)
    axes.plot(sweep.rates[sweep.best], losses[sweep.best].mean(), "o", color=line.colour, markersize=4.5)
    if sweep.range is not None:
        lowest, highest, _ = sweep.range
        low = limits[0] * (limits[1] / limits[0]) ** 0.06
        axes.plot([lowest, highest], [low, low], color=line.colour, linewidth=3, solid_capstyle="butt")
        place, side = (lowest / 1.3, "right") if lowest > 60 * RATES[0] else (highest * 1.3, "left")
        factor = f"× {sweep.range.factor:.0f}"
        axes.text(place, low, factor, ha=side, va="center", fontsize=8, color=line.colour)


def _explain(figure: SubFigure, settings: Settings) -> None:
    seeds = f"mean of {settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    figure.legend(
        [
            Line2D([], [], color=GREY, linewidth=1.6, marker="o", markersize=4.5),
            Patch(color=GREY, alpha=0.25, linewidth=0),
            Line2D([], [], color=GREY, linewidth=3, solid_capstyle="butt"),
        ],
        [f"{seeds}, and the best", "lowest to highest", "learning rates that train"],
        loc="outside upper left",
        ncols=2,
        title="Training loss at the end, by learning rate",
        alignment="left",
        frameon=False,
    )
