"""Pictures of what rules and optimizers do, as SVG that takes its ink from the page around it, light or dark."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

import gradtx as gx
from gradtx._engine.transformation import Transformation
from gradtx.workbench.picture import STYLE, spread

__all__ = [
    "COLOURS",
    "FAINT",
    "GRADIENT",
    "INK",
    "MUTED",
    "WIDTH",
    "bars",
    "cliff",
    "descend",
    "draw_lines",
    "lines",
    "over_time",
    "plane",
    "root_v",
    "set_title",
    "svg",
    "updates",
    "valley",
]

STEPS = 60
WIDTH, LEFT, RIGHT = 5.0, 0.1, 0.68  # inches, and what of it axes take; to be read on a telephone
LINE, SHORT = 0.17, 16  # inches from line to line of labels, and the letters in one
INK, MUTED, FAINT = "#333333", "#777777", "#e4e4e4"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
"""Of Okabe & Ito (2008), which colour-blind readers can tell apart; the first is what a picture is about."""

_OF_THE_PAGE = {
    INK: "var(--picture-ink)",
    MUTED: "var(--picture-muted)",
    FAINT: "var(--picture-faint)",
    "#ffffff": "var(--picture-paper)",
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


def scan(one: Callable[..., Any], first: Any, xs: Any = None, length: int | None = None) -> Any:
    """``jax.lax.scan``, compiled in half the time: these programs run once."""
    return jax.jit(lambda: jax.lax.scan(one, first, xs, length), compiler_options=_quick())()


@functools.cache
def _quick() -> dict[str, Any]:
    """Options with which XLA compiles quickly, if it knows them."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_llvm_disable_expensive_passes": True}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def updates(tx: Transformation, gradients: np.ndarray = GRADIENT, param: float = 0.0) -> np.ndarray:
    """The update of a chain for each of these gradients, the parameter staying where it is."""
    p = jnp.full(gradients.shape[1:], param)

    def one(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        update, state = tx.update(gradient, state, p)
        return state, update

    return np.asarray(scan(one, tx.init(p), jnp.asarray(gradients, jnp.float32))[1])


def descend(
    tx: Transformation,
    start: Any,
    gradient: Callable[[jax.Array], jax.Array],
    steps: int = STEPS,
    loss: Callable[[jax.Array], jax.Array] | None = None,
) -> np.ndarray:
    """The parameters, from the start on; of chains that read the loss with that."""

    def one(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        value = {} if loss is None else {"value": loss(params)}
        return gx.step(tx, params, gradient(params), state, **value), params

    start = jnp.asarray(start, jnp.float32)
    return np.asarray(scan(one, (start, tx.init(start)), length=steps + 1)[1])


def over_time(title: str, chains: Mapping[str, Transformation], steps: int = STEPS, param: float = 0.0) -> Figure:
    """The scripted gradient above, and below what comes out of each chain, each with its label beside it."""
    figure, (above, below) = _panels(3.4, height_ratios=[1, 1.7])
    t = np.arange(1, steps + 1)
    set_title(above, "gradient in, g")
    above.plot(t, GRADIENT[:steps], color=MUTED, linewidth=1.3, drawstyle="steps-mid")
    set_title(below, title)
    draw_lines(
        below, t, {label: updates(tx, param=param)[:steps] for label, tx in chains.items()}, drawstyle="steps-mid"
    )
    below.set_xlabel("step")
    return figure


def lines(
    title: str,
    curves: Mapping[str, np.ndarray],
    first: int = 0,
    x: np.ndarray | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Curves over steps, or over other numbers, each with its label beside it; with limits on a logarithmic axis."""
    figure, (axes,) = _panels(2.5)
    set_title(axes, title)
    if limits is not None:
        axes.set(yscale="log", ylim=limits)
    draw_lines(axes, first + np.arange(len(next(iter(curves.values())))) if x is None else x, curves)
    if x is None:
        axes.set_xlabel("step")
    return figure


def plane(title: str, points: np.ndarray, moved: np.ndarray, labels: tuple[str, str], limit: float) -> Figure:
    """Points of a plane, with arrows to where they are moved; those that stay are blue."""
    figure = Figure(figsize=(4.2, 4.2))
    axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.98, "bottom": 0.12, "top": 0.92})
    far = np.linalg.norm(points - moved, axis=1) > 1e-6
    angles = np.linspace(0, 2 * np.pi, 100)
    axes.plot(limit * np.cos(angles), limit * np.sin(angles), color=MUTED, linewidth=1)
    for start, end in zip(points[far], moved[far], strict=True):
        arrow = {"arrowstyle": "-|>", "color": COLOURS[0], "shrinkA": 0, "shrinkB": 0, "linewidth": 1.1}
        axes.annotate("", end, start, arrowprops=arrow)
    axes.plot(*points[far].T, "o", color=MUTED, markersize=3)
    axes.plot(*points[~far].T, "o", color=COLOURS[1], markersize=4)
    set_title(axes, title)
    axes.set_aspect("equal")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return figure


def bars(title: str, names: Sequence[str], groups: Mapping[str, np.ndarray], limit: float | None = None) -> Figure:
    """A group of bars for each name, the first for comparison, and a line at the limit, if there is one."""
    figure, (axes,) = _panels(2.5)
    at, width = np.arange(len(names)), 0.8 / len(groups)
    for i, (heights, colour) in enumerate(zip(groups.values(), (MUTED, *COLOURS), strict=False)):
        axes.bar(at + (i - (len(groups) - 1) / 2) * width, heights, width * 0.9, color=colour, zorder=2)
    inches = axes.bbox.height / figure.dpi
    for label, place, colour in zip(
        groups, _places(0.9 - 0.01 * np.arange(len(groups)), groups, inches), (MUTED, *COLOURS), strict=False
    ):
        axes.annotate(_broken(label), (1.02, place), xycoords="axes fraction", va="center", color=colour)
    if limit is not None:
        axes.axhline(limit, color=INK, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate("limit", (1.01, limit), xycoords=("axes fraction", "data"), va="center", color=INK)
    axes.set_xticks(at, [_broken(name, 8) for name in names])
    axes.tick_params(axis="x", length=0)
    set_title(axes, title)
    return figure


def valley(chains: Mapping[str, Transformation], steps: int = STEPS) -> Figure:
    """Ways down the valley ½(w₁² + 30 w₂²), and the loss on them: of a chain, and of what it is compared with."""
    curvature, colours = np.array([1.0, 30.0]), (COLOURS[0], MUTED)
    figure, (plan, losses) = _panels(4.2, height_ratios=(1, 1), sharex=False, hspace=0.55)
    x, y = np.meshgrid(np.linspace(-4.6, 2.4, 80), np.linspace(-1.35, 1.35, 60))
    plan.contour(
        x, y, (curvature[0] * x**2 + curvature[1] * y**2) / 2, np.geomspace(0.1, 40, 9), colors=FAINT, linewidths=0.9
    )
    curves: dict[str, np.ndarray] = {}
    for (label, tx), colour, marker in zip(chains.items(), colours, (".", ""), strict=True):
        slope, height = (lambda w: jnp.asarray(curvature) * w), (lambda w: jnp.sum(jnp.asarray(curvature) * w**2) / 2)
        path = descend(tx, [(-4.0, 1.0)], slope, steps, height)[:, 0]  # a matrix of one row
        curves[label] = np.maximum(path**2 @ curvature / 2, 1e-9)
        plan.plot(*path.T, color=colour, linewidth=1.1, marker=marker, markersize=3.5, zorder=2 + bool(marker))
    plan.plot(0, 0, "+", color=INK, markersize=8)
    plan.set(xlim=(-4.6, 2.4), ylim=(-1.35, 1.35), xlabel="w₁, the flat direction")
    plan.grid(False)
    set_title(plan, "w₂, the steep direction")
    losses.set_yscale("log")
    draw_lines(losses, np.arange(steps + 1), curves, colours)
    losses.set_xlabel("step")
    set_title(losses, "loss")
    return figure


def cliff(chains: Mapping[str, Transformation], steps: int = 600) -> Figure:
    """A cliff and then a long gentle slope down to 0, and the ways of chains that start on the cliff."""
    figure, (profile, ways) = _panels(4.0, height_ratios=(1, 1.7), sharex=False, hspace=0.55)
    w = np.linspace(-1, 14, 300)
    profile.plot(w, np.logaddexp(2 * w, -2 * w) / 2 + 19.8 * np.logaddexp(0, 5 * (w - 12)), color=MUTED, linewidth=1.3)
    profile.set(xlabel="w", xticks=[0, 5, 10, 14])
    set_title(profile, "loss")

    def gradient(w: jax.Array) -> jax.Array:
        return jnp.tanh(2 * w) + 99 * jax.nn.sigmoid(5 * (w - 12))

    curves = {label: descend(tx, 14.0, gradient, steps) for label, tx in chains.items()}
    draw_lines(ways, np.arange(steps + 1), curves, COLOURS if len(chains) > 2 else (COLOURS[0], MUTED))
    ways.set_xlabel("step")
    set_title(ways, "w")
    return figure


def svg(draw: Callable[[], Figure]) -> str:
    """A picture as one line of SVG to stand in a page."""
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "gradtx", "font.size": 9.5}):
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with gx.executor("reference"):  # quicker to compile
            draw().savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _OF_THE_PAGE.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", text)


def _panels(
    height: float, height_ratios: Sequence[float] = (1,), sharex: bool = True, hspace: float = 0.25
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels below each other, with room for labels on the right; all are equally wide."""
    figure = Figure(figsize=(WIDTH, height))
    margins = {"left": LEFT, "right": RIGHT, "bottom": 0.45 / height, "top": 1 - 0.3 / height, "hspace": hspace}
    rows = len(height_ratios)
    grid = figure.subplots(rows, 1, sharex=sharex, squeeze=False, height_ratios=height_ratios, gridspec_kw=margins)
    return figure, list(grid[:, 0])


def set_title(axes: Axes, text: str) -> None:
    """A title above the left end of the axes."""
    axes.set_title(text, fontsize=9.5, color=INK, pad=6, y=1.0)  # a y given need not be searched for


def draw_lines(
    axes: Axes,
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    colours: Sequence[str] = COLOURS,
    drawstyle: Any = "default",
) -> None:
    """Curves, the first on top, with labels at their right ends, moved apart where they would meet."""
    for i, (y, colour) in enumerate(zip(curves.values(), colours, strict=False)):
        axes.plot(x, y, color=colour, linewidth=1.4 if i else 2, zorder=4 - i / 9, drawstyle=drawstyle)
    axes.margins(x=0.01)
    if x[-1] > 1:
        between = next((width for width in (5, 10, 50) if len(x) <= 6.2 * width), 100)
        axes.xaxis.set_major_locator(MultipleLocator(between))
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [float(to_axes.transform((x[-1], y[-1]))[1]) if np.isfinite(y[-1]) else 1.0 for y in curves.values()]
    inches = axes.bbox.height / axes.figure.dpi
    for label, place, colour in zip(curves, _places(ends, curves, inches), colours, strict=False):
        axes.annotate(_broken(label), (1.02, place), xycoords="axes fraction", va="center", color=colour)


def _broken(label: str, letters: int = SHORT) -> str:
    """A label in lines that are short, where spaces allow it."""
    return fill(label, letters, break_long_words=False, break_on_hyphens=False)


def _places(wanted: Iterable[float], labels: Iterable[str], inches: float) -> np.ndarray:
    """Places of labels beside axes so high, as near to those wanted as their lines allow."""
    lines = max(len(_broken(label).splitlines()) for label in labels)
    places = [min(max(place, 0.0), 1.0) for place in wanted]
    return spread(places, min((0.02 + LINE * lines) / inches, 1 / len(places)))
