"""Pictures of what rules and optimizers do, as SVG that takes its ink from the page around it, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import gradtx as gx
from gradtx._rule import Transformation
from gradtx.workbench.picture import STYLE, spread

__all__ = ["GRADIENT", "bars", "descend", "lines", "over_time", "plane", "root_v", "svg", "updates", "valley"]

STEPS = 60
INK, MUTED, FAINT = "#333333", "#777777", "#e4e4e4"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
"""Of Okabe & Ito (2008), which colour-blind readers can tell apart; the first is what a picture is about."""

_OF_THE_PAGE = {
    INK: "var(--md-default-fg-color)",
    MUTED: "var(--md-default-fg-color--light)",
    FAINT: "var(--md-default-fg-color--lightest)",
    "#ffffff": "var(--md-default-bg-color)",
    COLOURS[1]: "var(--picture-blue)",  # the one that is too dark on a dark page
}


def _scripted() -> np.ndarray:
    """The gradient that every rule is shown: small, then a step up, then noise around a small negative; two spikes."""
    noise = np.random.default_rng(0).normal(0.0, 0.5, STEPS)
    gradient = np.concatenate([np.full(20, 0.5), np.full(20, 1.5), -0.5 + noise[40:]])
    gradient[[29, 50]] = 4.0, -4.0
    return gradient


GRADIENT = _scripted()


class root_v(gx.Rule):
    """The root of the second moment as the direction, to look at it."""

    equation = r"u \leftarrow \sqrt{v}"
    second_moment = "uses"

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.sqrt(signal.second_moment), second_moment=None), {}


def updates(tx: Transformation, gradients: np.ndarray = GRADIENT, param: float = 0.0) -> np.ndarray:
    """What comes out of a chain for each of these gradients, the parameter staying where it is."""
    p = jnp.full(gradients.shape[1:], param)

    def one(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        update, state = tx.update(gradient, state, p)
        return state, update

    return np.asarray(jax.lax.scan(one, tx.init(p), jnp.asarray(gradients, jnp.float32))[1])


def descend(
    tx: Transformation, start: Any, gradient: Callable[[jax.Array], jax.Array], steps: int = STEPS
) -> np.ndarray:
    """The parameters, from the start on."""

    def one(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        return gx.step(tx, params, gradient(params), state), params

    start = jnp.asarray(start, jnp.float32)
    return np.asarray(jax.lax.scan(one, (start, tx.init(start)), length=steps + 1)[1])


def over_time(title: str, chains: Mapping[str, Transformation], steps: int = STEPS) -> Figure:
    """The scripted gradient above, and below what comes out of each chain, each with its label beside it."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.7])
    t = np.arange(1, steps + 1)
    _title(above, "gradient in, g")
    above.plot(t, GRADIENT[:steps], color=MUTED, linewidth=1.3, drawstyle="steps-mid")
    _draw_lines(below, t, {label: updates(tx)[:steps] for label, tx in chains.items()})
    _title(below, title)
    below.set_xlabel("step")
    above.xaxis.set_major_locator(MultipleLocator(10))
    above.margins(x=0.01)
    return figure


def lines(
    title: str, curves: Mapping[str, np.ndarray], xlabel: str = "step", first: int = 0, scale: Any = "linear"
) -> Figure:
    """Curves over steps, each with its label beside it."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale(scale)
    _draw_lines(axes, first + np.arange(len(next(iter(curves.values())))), curves)
    _title(axes, title)
    axes.set_xlabel(xlabel)
    axes.margins(x=0.01)
    return figure


def plane(title: str, points: np.ndarray, clipped: np.ndarray, xlabel: str, ylabel: str, limit: float) -> Figure:
    """Points of a plane, and arrows to where they are moved; those that stay are open circles."""
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    moved = np.linalg.norm(points - clipped, axis=1) > 1e-6
    angles = np.linspace(0, 2 * np.pi, 100)
    axes.plot(limit * np.cos(angles), limit * np.sin(angles), color=MUTED, linewidth=1)
    for start, end in zip(points[moved], clipped[moved], strict=True):
        arrow = {"arrowstyle": "-|>", "color": COLOURS[0], "shrinkA": 0, "shrinkB": 0, "linewidth": 1.1}
        axes.annotate("", end, start, arrowprops=arrow)
    axes.plot(*points[moved].T, "o", color=MUTED, markersize=3)
    axes.plot(*points[~moved].T, "o", color=COLOURS[1], markersize=4)
    _title(axes, title)
    axes.set_aspect("equal")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def bars(title: str, names: Sequence[str], groups: Mapping[str, np.ndarray], limit: float) -> Figure:
    """A group of bars for each name, and a line at the limit."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(names))
    width = 0.8 / len(groups)
    for i, ((label, heights), colour) in enumerate(zip(groups.items(), (MUTED, *COLOURS), strict=False)):
        x = at + (i - (len(groups) - 1) / 2) * width
        axes.bar(x, heights, width * 0.9, color=colour)
        axes.annotate(label, (1.01, 0.9 - 0.13 * i), xycoords="axes fraction", color=colour)
    axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate("limit", (1.01, limit), xycoords=("axes fraction", "data"), va="center", color=INK)
    axes.set_xticks(at, names)
    axes.tick_params(axis="x", length=0)
    _title(axes, title)
    return figure


def valley(chains: Mapping[str, Transformation], curvature: tuple[float, float] = (1.0, 30.0)) -> Figure:
    """Ways down a narrow valley, and the loss on each; the last chain is what the others are compared with."""
    start, scales = (-4.0, 1.0), jnp.array(curvature)
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    plan, losses = figure.subplots(1, 2, width_ratios=[1.35, 1])
    x, y = np.meshgrid(np.linspace(-4.6, 2.4, 120), np.linspace(-1.35, 1.35, 90))
    loss = 0.5 * (curvature[0] * x**2 + curvature[1] * y**2)
    plan.contour(x, y, loss, levels=np.geomspace(0.1, 40, 9), colors=FAINT, linewidths=0.9)
    curves: dict[str, np.ndarray] = {}
    for (label, tx), colour in zip(chains.items(), (COLOURS[0], MUTED), strict=False):
        path = descend(tx, start, lambda w: scales * w)
        curves[label] = np.maximum(0.5 * (path**2 @ np.asarray(curvature)), 1e-9)
        marker = "." if colour == COLOURS[0] else ""
        plan.plot(*path.T, color=colour, linewidth=1.1, marker=marker, markersize=3.5, zorder=2 + bool(marker))
    plan.plot(0, 0, "+", color=INK, markersize=8)
    plan.set_xlim(-4.6, 2.4)
    plan.set_ylim(-1.35, 1.35)
    plan.grid(False)
    plan.set_xlabel("w₁, the flat direction")
    _title(plan, "w₂, the steep direction")
    losses.set_yscale("log")
    _draw_lines(losses, np.arange(STEPS + 1), curves, (COLOURS[0], MUTED))
    _title(losses, "loss")
    losses.set_xlabel("step")
    return figure


def svg(draw: Callable[[], Figure]) -> str:
    """A picture as one line of SVG to stand in a page."""
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "gradtx", "font.size": 9.5}):
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        draw().savefig(file, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _OF_THE_PAGE.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", text)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9.5, color=INK, pad=6)


def _draw_lines(
    axes: Axes, x: np.ndarray, curves: Mapping[str, np.ndarray], colours: Sequence[str] = COLOURS
) -> None:
    """Curves with labels at their right ends, moved apart where they would meet."""
    for (_, y), colour in zip(curves.items(), colours, strict=False):
        axes.plot(x, y, color=colour, linewidth=1.7, zorder=3)
    axes.margins(x=0.01)
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [float(to_axes.transform((x[-1], y[-1]))[1]) for y in curves.values()]
    places = spread(np.clip(ends, 0, 1), 0.11)
    for label, place, colour in zip(curves, places, colours, strict=False):
        axes.annotate(label, (1.01, place), xycoords="axes fraction", va="center", color=colour)
