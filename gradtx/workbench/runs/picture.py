"""Runs as a picture: the training loss, and under it the gradient norm of each layer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from gradtx.workbench.picture import Line, draw_losses, limits, limits_of_losses, page, panels_of, plot, set_axes
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings

__all__ = ["draw"]


def draw(settings: Settings, runs: Sequence[Run]) -> bytes:
    """A PNG with one column for each network: training loss, then a panel of gradient norms for each optimizer.

    Panels of one kind have the same axes. A cross marks the last finite
    number of a training that ended in others; what leaves an axis, leaves the panel.

    Args:
        settings: of the comparison.
        runs: at least one.
    """
    losses = limits_of_losses([run.measures.train_loss for run in runs])
    norms = _limits_of_norms(runs)

    def column(above: SubFigure, below: SubFigure, name: str, rows: int, columns: int) -> None:
        of_network = [run for run in runs if run.network == name]
        _draw_losses(above, of_network, losses, settings.title(name))
        _draw_norms(below, of_network, norms, rows, columns)

    return page(settings, runs, column)


def _limits_of_norms(runs: Sequence[Run]) -> tuple[float, float]:
    return limits(np.concatenate([run.measures.gradient_norms.ravel() for run in runs]), 1e-12, 1e6)


def _draw_losses(figure: SubFigure, runs: Sequence[Run], limits: tuple[float, float], title: str) -> None:
    diverged = {run.optimizer: " (diverged)" * (run.verdict == "diverged") for run in runs}
    losses = {run.optimizer: run.measures.train_loss for run in runs}
    draw_losses(figure, losses, limits, title, diverged)


def _draw_norms(figure: SubFigure, runs: Sequence[Run], limits: tuple[float, float], rows: int, columns: int) -> None:
    panels = panels_of(figure, [run.optimizer for run in runs], rows, columns)
    layers = runs[0].measures.gradient_norms.shape[1]
    colours = [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.85, layers))]
    for axes, run in zip(panels, runs, strict=True):
        set_axes(axes, len(run.measures.train_loss) - 1, limits)
        for norms, colour in zip(run.measures.gradient_norms.T, colours, strict=True):
            plot(axes, norms, Line(colour), 1.3)
    figure.supxlabel("epoch", fontsize=10, color="#333333")
    figure.supylabel("gradient norm", fontsize=10, color="#333333")
    _explain_layers(figure, colours)


def _explain_layers(figure: SubFigure, colours: Sequence[str]) -> None:
    """A legend of the layers' colours; of some, if there are many."""
    last = len(colours) - 1
    named = sorted({round(last * part / 4) for part in range(5)})
    figure.legend(
        [Line2D([], [], color=colours[i], linewidth=2) for i in named],
        [f"{i + 1}" + " (output)" * (i == last) for i in named],
        loc="outside upper left",
        ncols=len(named),
        title="L2 norm of the training loss's gradient in layer",
        alignment="left",
        frameon=False,
    )
