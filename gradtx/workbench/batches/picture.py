"""Batch sizes as a picture: the training loss by step, and beside it by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import SubFigure

from gradtx.workbench.picture import HEADING, Curve, Line, draw_curves, draw_heading, limits_of_losses, page
from gradtx.workbench.recipes import recipe_of
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings

__all__ = ["draw_batches"]

HEIGHT = 3.2
"""The height of a pair, in inches; it has room for some eight labels of two lines."""


def draw_batches(settings: Settings, runs: Sequence[Run]) -> bytes:
    """A PNG with one column for each network, and in it a pair of axes for each optimizer.

    On the left the training loss over all images after each of the first steps, on the right after each epoch, a curve
    for each batch size, the largest the brightest. All pairs have the same axes. A cross marks the last finite number
    of a training that ended in others.

    Args:
        settings: of the comparison.
        runs: at least one, each with its ``descent``.
    """
    sizes = sorted(settings.batch_sizes)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.1, 0.8, len(sizes)))
    lines = {size: Line(to_hex(shade)) for size, shade in zip(sizes, shades, strict=True)}
    limits = limits_of_losses([curve for run in runs for curve in _curves(run)])
    optimizers = [name for name in settings.optimizers if any(run.optimizer == name for run in runs)]

    def column(figures: Sequence[SubFigure], name: str) -> None:
        for head, figure, optimizer in zip(figures[::2], figures[1::2], optimizers, strict=True):
            pair = [run for run in runs if (run.network, run.optimizer) == (name, optimizer)]
            if pair:  # none if the comparison was interrupted
                draw_heading(head, f"{recipe_of(optimizer).title}, {settings.title(name)}", settings.details)
                _draw_pair(figure, pair, lines, limits)

    return page(settings, runs, [HEADING, HEIGHT] * len(optimizers), column)


def _curves(run: Run) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(run.descent), run.measures.train_loss


def _draw_pair(figure: SubFigure, runs: Sequence[Run], lines: dict[int, Line], limits: tuple[float, float]) -> None:
    by_step, by_epoch = figure.subplots(1, 2, sharey=True)
    curves = [[Curve(_label(run), each, lines[run.batch_size]) for each in _curves(run)] for run in runs]
    of_steps, of_epochs = zip(*curves, strict=True)
    draw_curves(by_step, of_steps, limits)
    draw_curves(by_epoch, of_epochs, limits, HEIGHT)
    by_step.set_xlabel("step")
    by_epoch.set_xlabel("epoch")
    by_step.set_ylabel("training loss (nats)")


def _label(run: Run) -> str:
    return f"batch {run.batch_size}\n(rate {run.learning_rate:g})"
