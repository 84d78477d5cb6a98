"""Pictures of what the review article claims: each is drawn from a run, on a problem that shows the point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gradtx as gx
from docs.generate.pictures import COLOURS, MUTED, WIDTH, cliff, descend, lines, set_title, valley
from gradtx.workbench.data import load_digits
from gradtx.workbench.networks import ACTIVATIONS, Network, Params
from gradtx.workbench.training import cross_entropy

__all__ = ["CLAIMS", "Claim"]


class Claim(NamedTuple):
    """A claim as a picture.

    Attributes:
        draw: the picture, from a run.
        caption: what to see, and why it is so.
    """

    draw: Callable[[], Figure]
    caption: str


# ---------------------------------------------------------------------------------------------------------------------
# Inertia
# ---------------------------------------------------------------------------------------------------------------------

ETA = 0.3
"""The learning rate on both profiles."""


def _plateau(w: jax.Array) -> jax.Array:
    """The slope of a loss that falls to −2, is all but flat to 0, falls again, and has its minimum at 3."""
    return jnp.where(w < -2, -1.0, jnp.where(w < 0, -0.01, jnp.where(w < 2.5, -1.0, 2 * (w - 3))))


def _saddle(w: jax.Array) -> jax.Array:
    """The slope of a loss that is level at 0, and falls on either side, as across a saddle; its minimum is at 2."""
    return jnp.where(w < 1.5, -(w**2), 4.5 * (w - 2))


def _over_plateaus_and_saddles() -> Figure:
    figure = Figure(figsize=(WIDTH, 2.9))
    for i, (name, slope, start, steps) in enumerate(
        [("a plateau", _plateau, -3.5, 60), ("a saddle", _saddle, -1.5, 60)]
    ):
        axes = figure.add_axes((0.06 + 0.49 * i, 0.17, 0.42, 0.7))
        w = np.linspace(start - 0.2, 3.4 - 0.8 * i, 400)
        slopes = np.asarray(slope(jnp.asarray(w)))
        height = np.concatenate([[0.0], np.cumsum((slopes[1:] + slopes[:-1]) / 2 * np.diff(w))])
        height -= height.min()
        axes.plot(w, height, color=MUTED, linewidth=1.2)
        chains = {"momentum": (gx.momentum_sgd(ETA), COLOURS[0], 0.0), "descent": (gx.sgd(ETA), COLOURS[1], 0.14)}
        for line, (label, (tx, colour, lift)) in enumerate(chains.items()):
            path = descend(tx, start, slope, steps)
            y = np.interp(path, w, height) + lift * height.max()
            axes.plot(path, y, ".", color=colour, markersize=4.5, zorder=3)
            axes.annotate(label, (0.98, 0.9 - 0.11 * line), xycoords="axes fraction", ha="right", color=colour)
        set_title(axes, f"loss: {name}")
        axes.set_ylim(-0.08 * height.max(), 1.25 * height.max())
        axes.set_yticks([])
        axes.set_xlabel("w")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Clipping
# ---------------------------------------------------------------------------------------------------------------------


def _two_clips() -> Figure:
    gradient, limit = np.array([3.0, 0.8]), 1.0
    clips = {"by value": gx.clip_by_value(limit), "by norm": gx.clip_by_norm(limit)}
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.add_axes((LEFT_OF_PLANE, 0.19, 0.66, 0.7))
    angles = np.linspace(0, np.pi / 2, 60)
    axes.plot(limit * np.cos(angles), limit * np.sin(angles), color=MUTED, linewidth=0.9, linestyle=":")
    axes.plot([0, limit, limit], [limit, limit, 0], color=MUTED, linewidth=0.9, linestyle=":")
    _arrow(axes, gradient, MUTED, "gradient: (3, 0.8)")
    for (label, clip), colour in zip(clips.items(), COLOURS, strict=False):
        clipped = np.asarray(clip.update(jnp.asarray(gradient), clip.init(jnp.zeros(2)))[0])
        below = (6, -11) if label == "by norm" else (2, 7)
        _arrow(axes, clipped, colour, f"{label}: ({clipped[0]:.2f}, {clipped[1]:.2f})", below)
    axes.set(xlim=(0, 4.4), ylim=(0, 1.3), xlabel="first element")
    axes.grid(False)
    set_title(axes, "second element")
    return figure


LEFT_OF_PLANE = 0.075


def _arrow(axes: Axes, end: np.ndarray, colour: str, label: str, side: tuple[float, float] = (6, 2)) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.8}
    axes.annotate("", tuple(end), (0, 0), arrowprops=arrow)
    axes.annotate(label, tuple(end), side, textcoords="offset points", color=colour)


# ---------------------------------------------------------------------------------------------------------------------
# A maxout unit
# ---------------------------------------------------------------------------------------------------------------------

PIECES = 5


def _learned_convex_function() -> Figure:
    """A unit of one input and ``PIECES`` affine functions, trained to be w² on [−2, 2]."""
    x = jnp.linspace(-2, 2, 201)

    def affine(params: Any) -> jax.Array:
        return jnp.outer(x, params["slope"]) + params["offset"][None]

    def unit(params: Any) -> jax.Array:
        return gx.maxout(affine(params), PIECES)[:, 0]

    def one(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        gradient = jax.grad(lambda p: jnp.mean((unit(p) - x**2) ** 2))(params)
        return gx.step(tx, params, gradient, state), None

    tx = gx.adam(0.03)
    params = {"slope": jax.random.normal(jax.random.key(5), (PIECES,)), "offset": jnp.zeros(PIECES)}
    (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), length=1500)
    each = np.asarray(affine(params))
    used = len(np.unique(each.argmax(axis=1)))
    curves = {f"unit of {used} pieces": np.asarray(unit(params)), "x², to be learned": np.asarray(x**2)}
    figure = lines("output", curves, x=np.asarray(x))
    (axes,) = figure.axes
    axes.plot(x, each, color=MUTED, linewidth=0.7, zorder=1)
    axes.set(ylim=(-1.2, 4.3), xlabel="input x", xticks=[-2, -1, 0, 1, 2])
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Where a training begins
# ---------------------------------------------------------------------------------------------------------------------


def _initial_weights_and_data() -> Figure:
    data, network, tx, epochs = load_digits(), Network(ACTIVATIONS["relu"], 6, 64, 64, 10), gx.sgd(0.05), 10
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)

    @jax.jit
    def train(params: Params, images: jax.Array) -> jax.Array:
        def loss(params: Params, rows: Any) -> jax.Array:
            return cross_entropy(network.apply(params, images[rows]), labels[rows])

        def one(carry: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            return gx.step(tx, params, jax.grad(loss)(params, rows), state), loss(params, slice(None))

        order = jax.random.permutation(jax.random.key(1), jnp.tile(jnp.arange(data.size - data.size % 32), epochs))
        return jax.lax.scan(one, (params, tx.init(params)), order.reshape(-1, 32))[1]

    he = network.init(jax.random.key(0))

    def scaled(factor: float) -> Params:
        return jax.tree.map(lambda leaf: factor * leaf, he)

    raw = 8 + 6 * images  # in the range of the pixels, 0 to 16, and with a mean that is not 0
    curves = {
        "He's weights,\nstandardized": train(he, images),
        "weights / 2": train(scaled(0.5), images),
        "weights · 2:\ndiverged": train(scaled(2.0), images),
        "raw pixels": train(he, raw),
    }
    return lines("training loss", {label: np.asarray(curve) for label, curve in curves.items()}, limits=(1e-2, 1e3))


# ---------------------------------------------------------------------------------------------------------------------
# Adam first, then SGD
# ---------------------------------------------------------------------------------------------------------------------


def _mean_losses(chains: Mapping[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Losses on a bowl that is 20 times flatter one way, with noise in its gradients: means of 64 runs."""
    curvature, start = jnp.array([0.05, 1.0]), jnp.array([-8.0, 2.0])

    def run(tx: Any, key: jax.Array) -> jax.Array:
        def one(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            w, state = carry
            gradient = curvature * w + 0.3 * jax.random.normal(key, w.shape)
            return gx.step(tx, w, gradient, state), jnp.sum(curvature * w**2) / 2

        return jax.lax.scan(one, (start, tx.init(start)), jax.random.split(key, steps + 1))[1]

    keys = jax.random.split(jax.random.key(0), 64)
    return {label: np.asarray(jax.vmap(lambda key, tx=tx: run(tx, key))(keys).mean(0)) for label, tx in chains.items()}


def _adam_then_sgd() -> Figure:
    adam, sgd = gx.adam(0.2), gx.momentum_sgd(0.05)
    chains = {"Adam, then SGD\nfrom step 100 on": gx.switch(100, adam, sgd), "Adam": adam, "SGD": sgd}
    return lines("loss", _mean_losses(chains, 300), limits=(2e-3, 6))


CLAIMS: dict[str, Claim] = {
    "cliff": Claim(
        lambda: cliff(
            {
                "RMSProp": gx.rmsprop(0.1),
                "AdaGrad": gx.adagrad(1.0),
                "max-V": gx.article_max_v(0.3, second_decay=0.9),
            }
        ),
        "A cliff, then a long gentle slope down to 0. All three start on the cliff, where gradients are a hundred"
        " times as large as on the slope. AdaGrad adds up their squares and never forgets them: on the slope its "
        "steps stay tiny, and it stops long before the minimum. RMSProp averages, forgets the cliff within some "
        "fifty steps, and arrives. max-V keeps the largest average of all, that of the cliff, so it stops early "
        "again.",
    ),
    "damping": Claim(
        lambda: valley({"momentum": gx.momentum_sgd(0.066), "descent": gx.sgd(0.066)}),
        "The same learning rate, just below what descent bears. Across the valley gradients change their sign in "
        "each step: descent bounces, and the average of momentum cancels most of it, so the bouncing dies away. "
        "Along the valley gradients agree, and the average is as long as they are.",
    ),
    "inertia": Claim(
        _over_plateaus_and_saddles,
        "A dot is a step, at the same learning rate for both (descent is drawn a little higher). Where the loss "
        "is level the gradient is nearly 0, and descent all but stops. Momentum still has the average of the "
        "gradients on the slope before, and rolls on to where the loss falls again.",
    ),
    "clips": Claim(
        _two_clips,
        "One gradient, clipped at 1 in both ways. By value each element is cut by itself: the large one becomes "
        "1, the small one stays, and the step points elsewhere. By norm the whole is shortened, and still points "
        "downhill. That is why clipping by norm is the usual choice.",
    ),
    "maxout": Claim(
        _learned_convex_function,
        f"A maxout unit of one input is the greatest of {PIECES} affine functions (grey), so it is convex and "
        "piecewise linear, with at most as many pieces as functions. Trained on x² with Adam it places them by "
        "itself. Here all are used; from other random starts one or two of the functions lie below the others "
        "everywhere, and learn nothing.",
    ),
    "start": Claim(
        _initial_weights_and_data,
        "A ReLU network of six hidden layers on the digits, SGD at 0.05 for ten epochs (440 steps). With He's "
        "weights and standardized images it trains. Weights half as large shrink the signal in each layer, and "
        "the gradient with it: for most of the training nothing moves. Weights twice as large stretch it, and the"
        " loss leaves all bounds within four steps. Pixels as they are, from 0 to 16, make the first steps too "
        "long, and the network recovers slowly.",
    ),
    "adam_then_sgd": Claim(
        _adam_then_sgd,
        "A bowl that is 20 times as flat in one direction as in the other, with noise in the gradients; the mean "
        "of 64 runs. Adam is fast, as it divides by the size of the gradient. For the same reason its steps do "
        "not shrink near the minimum, and noise keeps it at a distance. SGD's steps shrink with the gradient, but"
        " it is slow to come near. Adam for 100 steps and SGD from there on has the best of both.",
    ),
}
