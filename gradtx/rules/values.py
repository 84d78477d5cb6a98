"""Rules that read something else than gradients: the value of the loss, or chance."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.mesh import check_whole
from gradtx._core.numerics import norms, real_dtype, safe_divide, widest
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["add_noise", "scale_by_polyak"]


class scale_by_polyak(Rule):
    r"""Polyak's step: u ← u·min((f − f*)/(‖u‖² + ε), most), f being the loss, f* what it is at its minimum.

    As if the loss were linear down to its minimum. The norm is that over all leaves. ``update`` and ``step`` need the
    loss that the gradient is of, as ``value=loss``: ``step(tx, params, grads, state, value=loss)``.

    Args:
        minimum: f*, or a lower bound of it. 0, which a model that fits all of its data reaches.
        most: the longest step as a learning rate, > 0. 1.
        eps: ε ≥ 0. 0; where ‖u‖² + ε is 0, so is the step.
        signed: whether a loss below f* goes uphill, as ``optax.polyak_sgd`` by default does. False: it stays.

    Inf and NaN: one of them in a gradient, or in the loss, makes all leaves NaN or 0.

    Raises:
        TypeError: without a ``value``; for one that is no number.

    Source: Loizou et al. (2021), "Stochastic Polyak step-size for SGD: an adaptive learning rate for fast convergence".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.chain(gradtx.scale_by_polyak(most=10.0), gradtx.scale(-1.0)), jnp.array([3.0])
    >>> updates, state = tx.update(2 * p, tx.init(p), value=jnp.sum(p**2))
    >>> print(updates)  # half of the way for a parabola
    [-1.5]
    """

    equation = r"u \leftarrow u \min((f - f^*) / (\lVert u\rVert^2 + \epsilon), c)"
    maps_trees = True
    accumulates = False
    normalizes = True

    minimum: Hyper = hyper(default=0.0)
    most: Hyper = hyper(default=1.0, low=0)
    eps: Hyper = hyper(default=0.0, low=0)
    signed: bool = dataclasses.field(default=False, kw_only=True)

    def apply_tree(self, trees, state):
        who = f"gradtx: rule {self.name or self.label!r}"
        if trees.extra.get("value") is None:
            raise TypeError(f"{who} needs the loss: step(tx, params, grads, state, value=loss)")
        if jnp.shape(trees.extra["value"]):
            raise TypeError(f"{who}: value must be one number, found shape {jnp.shape(trees.extra['value'])}")
        leaves = jax.tree.leaves(trees.direction)
        wide = widest(*(real_dtype(x.dtype) for x in leaves))
        c, norm = trees.scalars(wide), norms([leaves])[0].astype(wide)
        gap = jnp.asarray(trees.extra["value"]).astype(wide) - c.minimum
        gap = gap if self.signed else jnp.maximum(gap, 0)
        divisor = norm**2 + c.eps
        step = jnp.where(divisor == 0, 0, jnp.minimum(safe_divide(gap, divisor), c.most))
        return jax.tree.map(lambda u: step.astype(real_dtype(u.dtype)) * u, trees.direction), state


class add_noise(Rule):
    r"""Gaussian noise that falls: u ← u + n, with the variance η/t^γ in step t.

    In front of a chain it is gradient noise. The noise follows from the seed and the count alone: there is no key in
    the state, and a run that goes on from a checkpoint goes on with the same noise.

    Args:
        variance: η ≥ 0 of the first step; 0.01, 0.3 or 1 in the paper.
        power: γ ≥ 0. 0.55 as in the paper.
        seed: of the noise. 0.

    Inf and NaN stay in their element.

    Raises:
        TypeError: for a seed that is no integer.
        ValueError: for a shard of a leaf, inside of ``jax.shard_map``: all would get the same noise.

    Source: Neelakantan et al. (2015), "Adding gradient noise improves learning for very deep networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.add_noise(0.25, 0.0), jnp.zeros(10_000)
    >>> print(tx.update(g, tx.init(g))[0].std().round(1))
    0.5
    """

    equation = r"u \leftarrow u + n, \quad n \sim N(0, \eta / t^\gamma)"
    maps_trees = True
    pure = True

    variance: Hyper = hyper(default=0.01, low=0)
    power: Hyper = hyper(default=0.55, low=0)
    seed: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise TypeError(f"add_noise: seed must be an integer, found {self.seed!r}")

    def apply_tree(self, trees, state):
        leaves, treedef = jax.tree.flatten(trees.direction)
        key = jax.random.fold_in(jax.random.key(self.seed), trees.count)
        return treedef.unflatten([self._noisy(trees, u, key, i) for i, u in enumerate(leaves)]), state

    def _noisy(self, trees: Any, u: jax.Array, key: jax.Array, leaf: int) -> jax.Array:
        check_whole(self.name or self.label, u)
        c = trees.scalars(u.dtype)
        deviation = jnp.sqrt(c.variance * (trees.count.astype(c.power.dtype) + 1) ** -c.power)
        return u + deviation * jax.random.normal(jax.random.fold_in(key, leaf), u.shape, u.dtype)
