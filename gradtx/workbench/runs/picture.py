"""Runs as a picture: losses on the training images first and on the test images second, and gradients by layer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from gradtx.workbench.picture import (
    FAINT,
    HEADING,
    Curve,
    Line,
    draw_curves,
    draw_heading,
    height_of_curves,
    limits,
    limits_of_losses,
    line_of,
    page,
    panels_of,
    plot,
    set_axes,
    set_heading,
)
from gradtx.workbench.recipes import recipe_of
from gradtx.workbench.runs.run import FIRST_STEPS, Run
from gradtx.workbench.settings import Settings

__all__ = ["draw"]

MOST = 12
"""More optimizers than this are shown as a gallery."""

COLUMNS = 3
"""Panels of gradient norms side by side."""

COLUMNS_OF_GALLERY = 4

HIGHEST = 1e12
"""The highest loss or norm that is drawn where the first steps are."""


def draw(settings: Settings, runs: Sequence[Run]) -> bytes:
    """A PNG with one column for each network.

    From above: the training loss by epoch; the loss of the first mini-batches, step by step, beside the test loss by
    epoch; and for each optimizer a panel of gradient norms, a line for each layer. Panels of one kind have the same
    axes. A cross marks the last finite number of a training that ended in others; if that was within the first steps,
    its panel of norms is by step.

    More optimizers than a dozen are a gallery: each has a panel of its training loss and its test loss, before the
    training losses of all others.

    Args:
        settings: of the comparison.
        runs: at least one.
    """
    optimizers = len({run.optimizer for run in runs})
    above = height_of_curves(optimizers)
    losses = limits_of_losses([run.measures.train_loss for run in runs])
    tests = limits_of_losses([run.measures.test_loss for run in runs], least=10)
    steps = limits(np.concatenate([run.steps.loss[:FIRST_STEPS] for run in runs]), 1e-8, HIGHEST)
    norms = _limits_of_norms(runs)
    gallery = optimizers > MOST

    def column(figures: Sequence[SubFigure], name: str) -> None:
        of_network = [run for run in runs if run.network == name]
        if gallery:
            limits = min(losses[0], tests[0]), max(losses[1], tests[1])
            draw_heading(figures[0], settings.title(name), settings.details)
            _draw_gallery(figures[1], of_network, limits)
            return
        _draw_losses(figures[0], of_network, losses, above, settings.title(name), settings.details)
        _draw_start_and_tests(figures[1], of_network, steps, tests)
        _draw_norms(figures[2], of_network, norms)

    if gallery:
        return page(settings, runs, [HEADING, 0.9 + 1.1 * -(-optimizers // COLUMNS_OF_GALLERY)], column)
    return page(settings, runs, [above, 2.3, 0.9 + 1.3 * -(-optimizers // COLUMNS)], column)


def _limits_of_norms(runs: Sequence[Run]) -> tuple[float, float]:
    return limits(np.concatenate([_norms(run)[1].ravel() for run in runs]), 1e-12, HIGHEST)


def _norms(run: Run) -> tuple[bool, np.ndarray]:
    """True if norms are shown by step, as of a training that ends within its first steps, and the norms."""
    norms = run.steps.gradient_norms
    if run.end is not None and run.end <= FIRST_STEPS:
        return True, np.concatenate([norms[: run.end - 1], np.full_like(norms[:1], np.nan)])
    return False, run.measures.gradient_norms


def _curves(runs: Sequence[Run], kind: str) -> list[Curve]:
    return [Curve(_label(run), getattr(run.measures, kind), line_of(run.optimizer)) for run in runs]


def _label(run: Run) -> str:
    ended = "" if run.end is None else f" in step {run.end}"
    return recipe_of(run.optimizer).title + f" (diverged{ended})" * (run.verdict == "diverged")


def _draw_losses(
    figure: SubFigure, runs: Sequence[Run], limits: tuple[float, float], height: float, title: str, details: str
) -> None:
    axes = figure.subplots()
    draw_curves(axes, _curves(runs, "train_loss"), limits, height)
    set_heading(axes, title, details)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss (cross-entropy, nats)")


def _draw_start_and_tests(
    figure: SubFigure, runs: Sequence[Run], of_steps: tuple[float, float], of_tests: tuple[float, float]
) -> None:
    start, tests = figure.subplots(1, 2)
    first = [Curve("", run.steps.loss[:FIRST_STEPS], line_of(run.optimizer)) for run in runs]
    draw_curves(start, first, of_steps, first=1)
    start.set_title("Loss of the first mini-batches", fontsize=10, pad=5)
    start.set_xlabel("step")
    draw_curves(tests, _curves(runs, "test_loss"), of_tests)
    tests.set_title("Test loss", fontsize=10, pad=5)
    tests.set_xlabel("epoch")


def _draw_norms(figure: SubFigure, runs: Sequence[Run], limits: tuple[float, float]) -> None:
    layers = runs[0].measures.gradient_norms.shape[1]
    colours = [to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 0.75, layers))]
    titles = [recipe_of(run.optimizer).title + ", by step" * _norms(run)[0] for run in runs]
    for axes, run in zip(panels_of(figure, titles, min(COLUMNS, len(runs))), runs, strict=True):
        by_step, norms = _norms(run)
        set_axes(axes, len(norms) if by_step else len(norms) - 1, limits, int(by_step), ticks=4)
        for of_layer, colour in zip(norms.T, colours, strict=True):
            plot(axes, of_layer, Line(colour), 1.3, int(by_step))
        if by_step:
            axes.tick_params(labelbottom=True)
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


def _draw_gallery(figure: SubFigure, runs: Sequence[Run], limits: tuple[float, float]) -> None:
    titles = [recipe_of(run.optimizer).title for run in runs]
    for axes, run in zip(panels_of(figure, titles, COLUMNS_OF_GALLERY), runs, strict=True):
        set_axes(axes, len(run.measures.train_loss) - 1, limits, ticks=2)
        for other in runs:
            plot(axes, other.measures.train_loss, Line(FAINT), 0.6)
        colour = line_of(run.optimizer).colour
        plot(axes, run.measures.test_loss, Line(colour, "--"), 1.2)
        plot(axes, run.measures.train_loss, Line(colour), 1.8)
    figure.supxlabel("epoch", fontsize=10, color="#333333")
    figure.supylabel("loss", fontsize=10, color="#333333")
    figure.legend(
        [Line2D([], [], color="#777777", linewidth=1.8), Line2D([], [], color="#777777", linestyle="--")],
        ["training", "test"],
        loc="outside upper left",
        ncols=2,
        title="Loss of each optimizer, before the training losses of the others",
        alignment="left",
        frameon=False,
    )
