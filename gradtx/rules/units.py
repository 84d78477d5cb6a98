"""Rules that see the units of a layer: the slices of a leaf that belong to one output each."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.limits import check_choice
from gradtx._core.mesh import check_whole
from gradtx._core.numerics import abs_sq, mix, real_dtype, safe_divide, safe_sqrt
from gradtx.rules.base import Hyper, Rule, hyper
from gradtx.rules.clipping import shortening

__all__ = ["adaptive_clip", "centralize", "scale_by_slice_rms"]


class centralize(Rule):
    r"""Take the mean of each output's slice away: u ← u − mean of u over all axes but the output's.

    In front of a chain, on the gradient: gradient centralization. Leaves of fewer than two axes stay as they are.

    Args:
        output: the axis of the outputs: -1, as in JAX's libraries, or 0, as in torch's. (optax keeps axis 0.)

    An inf or NaN makes its slice inf or NaN.

    Raises:
        ValueError: for another ``output``; for a shard of a leaf with two and more axes, inside of ``jax.shard_map``.

    Source: Yong et al. (2020), "Gradient centralization: a new optimization technique for deep neural networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.centralize(), jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> print(tx.update(g, tx.init(g))[0])
    [[-1. -2.]
     [ 1.  2.]]
    """

    equation = r"u \leftarrow u - \overline{u}"
    maps_trees = True
    pure = True

    output: int = dataclasses.field(default=-1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_output(self.label, self.output)

    def apply_tree(self, trees, state):
        def one(u: jax.Array) -> jax.Array:
            if u.ndim < 2 or u.size == 0:
                return u
            check_whole(self.title, u)
            return u - u.mean(others(u, self.output), keepdims=True)

        return jax.tree.map(one, trees.direction), state


class adaptive_clip(Rule):
    r"""Clip the norm of each output's slice to a share of its weights': u ← u·min(1, c·max(‖p‖, floor)/‖u‖).

    A leaf of fewer than two axes is one slice. In front of a chain it is adaptive gradient clipping, which lets
    networks without normalization take large batches; the last layer is better left out (see ``where``). Needs
    ``params`` in ``update``.

    Args:
        limit: c ≥ 0. 0.01 as in the paper.
        floor: ≥ 0, the least norm of the weights, so that weights of 0 may move. 1e-3 as in the paper.
        output: the axis of the outputs: -1, as in JAX's libraries, or 0, as in torch's.

    An inf or NaN makes its slice NaN or 0 as a whole.

    Raises:
        ValueError: for another ``output``; for a shard of a leaf, inside of ``jax.shard_map``.

    Source: Brock et al. (2021), "High-performance large-scale image recognition without normalization".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.adaptive_clip(0.5), jnp.array([[3.0, 6.0], [4.0, 8.0]])
    >>> print(tx.update(jnp.array([[3.0, 3.0], [4.0, 4.0]]), tx.init(p), p)[0])
    [[1.5 3. ]
     [2.  4. ]]
    """

    equation = r"u \leftarrow u \min(1, c \max(\lVert p\rVert, f) / \lVert u\rVert)"
    maps_trees = True
    pure = True
    needs_params = True

    limit: Hyper = hyper(default=0.01, low=0)
    floor: Hyper = hyper(default=1e-3, low=0)
    output: int = dataclasses.field(default=-1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_output(self.label, self.output)

    def apply_tree(self, trees, state):
        def one(u: jax.Array, p: jax.Array) -> jax.Array:
            if u.size == 0:
                return u
            check_whole(self.title, u)
            c = trees.scalars(u.dtype)
            most = c.limit * jnp.maximum(self._norms(p).astype(real_dtype(u.dtype)), c.floor)
            shorter = shortening(self._norms(u), most)
            return shorter["length"] * (shorter["inverse"] * u)

        return jax.tree.map(one, trees.direction, trees.params), state

    def _norms(self, x: jax.Array) -> jax.Array:
        """The norm of each slice, with the largest element taken out first, so that squares fit."""
        axes = others(x, self.output) if x.ndim > 1 else None
        most = jnp.max(jnp.abs(x), axes, keepdims=True)
        return most * safe_sqrt(abs_sq(safe_divide(x, most)).sum(axes, keepdims=True))


class scale_by_slice_rms(Rule):
    r"""Divide each output's slice by one number, the root of its average square: u ← u/(√(s/w) + ε).

    ::

        s ← βs + (1−β)·mean of |g|² over the slice;   w ← βw + 1−β, its weight

    Adam-mini, behind ``momentum`` and ``debias``: Adam with one second moment for each unit instead of each weight, so
    that a matrix of n by m holds n·m + m numbers instead of 2n·m. A leaf of fewer than two axes is one slice.

    Args:
        decay: β in [0, 1). 0.999 as in Adam.
        eps: ε ≥ 0, outside the root of the debiased average. 1e-8 as in Adam.
        over: "slice", of each output; or "leaf": each leaf by one number, as Adam-mini has it for heads and norms.
        output: the axis of the outputs: -1, as in JAX's libraries, or 0, as in torch's.

    State: ``state``, a tree with the s of each leaf, in its number of axes; ``weight``, w (a scalar). Where s is 0 and
    ε too, the step is 0.

    Inf and NaN spoil their slice, from then on. A gradient whose square overflows, above 1.8e19 in float32, makes the
    steps of its slice 0.

    Raises:
        ValueError: for another ``over`` or ``output``; for a shard of a leaf, inside of ``jax.shard_map``.

    Source: Zhang et al. (2024), "Adam-mini: use fewer learning rates to gain more".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_slice_rms(), jnp.array([[7.0, 0.0], [1.0, 0.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print([f"{u:.1f}" for u in updates.ravel()], state.slots["scale_by_slice_rms"]["state"].shape)
    ['1.4', '0.0', '0.2', '0.0'] (1, 2)
    """

    equation = (
        r"s \leftarrow \beta s + (1-\beta) \, \mathrm{mean} \, \lvert g\rvert^2, \quad "
        r"u \leftarrow u / (\sqrt{s / w} + \epsilon)"
    )
    maps_trees = True
    pure = True
    accumulates = True
    normalizes = True
    nonnegative = ("state", "weight")

    decay: Hyper = hyper(default=0.999, low=0, below=1)
    eps: Hyper = hyper(default=1e-8, low=0)
    over: str = dataclasses.field(default="slice", kw_only=True)
    output: int = dataclasses.field(default=-1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_choice(self.label, "over", self.over, ("slice", "leaf"))
        check_output(self.label, self.output)

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        return Tick(vars(h) | {"weight": weight}, {"weight": weight}, weights)

    def init_tree(self, params: Any) -> Any:
        return jax.tree.map(lambda p: self._mean(jnp.zeros_like(p.real)), params)

    def apply_tree(self, trees, state):
        def average(s: jax.Array, g: jax.Array) -> jax.Array:
            if g.ndim:
                check_whole(self.title, g)
            c = trees.scalars(g.dtype)
            return mix(c.decay, c.decay_complement, s.astype(real_dtype(g.dtype)), self._mean(abs_sq(g)))

        def divided(u: jax.Array, s: jax.Array) -> jax.Array:
            c = trees.scalars(u.dtype)
            return safe_divide(u, jnp.broadcast_to(safe_sqrt(s / c.weight) + c.eps, u.shape))

        averages = jax.tree.map(average, state, trees.gradient)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), averages, state)
        return jax.tree.map(divided, trees.direction, averages), after

    def _mean(self, squares: jax.Array) -> jax.Array:
        """Of each slice, in the leaf's number of axes."""
        axes = others(squares, self.output) if squares.ndim > 1 and self.over == "slice" else None
        sizes = squares.sum(axes, keepdims=True)
        return sizes / max(1, squares.size // max(1, sizes.size))


def check_output(rule: str, output: int) -> None:
    """Refuses what is no axis of outputs."""
    if output not in (0, -1):
        raise ValueError(f"{rule}: output must be -1, the last axis, or 0, the first, found {output!r}")


def others(x: jax.Array, output: int) -> tuple[int, ...]:
    """All axes but that of the outputs."""
    return tuple(axis for axis in range(x.ndim) if axis != output % x.ndim)
