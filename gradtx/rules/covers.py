"""Second moments of which a number for each row, column and so on is held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.mesh import check_whole
from gradtx._core.numerics import abs_sq, real_dtype, safe_divide, safe_sqrt
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["scale_by_sm3"]


class scale_by_sm3(Rule):
    r"""AdaGrad with one number for each row and column: u ← u/√(v + ε), v = min over axes of μ, plus |g|².

    ``μ_a ← max of v over all axes but a``, for each axis a of the leaf: an upper bound of AdaGrad's sum wherever it is
    looked up. A vector has one axis, and v is AdaGrad's sum itself.

    Args:
        eps: ε ≥ 0, inside the root. 1e-8 as in optax; the paper has none. Where v is 0, so is the step.

    State: ``state``, for each leaf a tuple of vectors, one for each axis; of a scalar itself.

    A NaN makes its element NaN, in the next step its row and column, and then its leaf, for ever. An inf makes further
    steps of its element 0.

    Raises:
        ValueError: for a shard of a leaf of two and more axes, inside of ``jax.shard_map``.

    Source: Anil et al. (2019), "Memory-efficient adaptive optimization", Algorithm SM3-II.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_sm3(0.0), jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(state.slots["scale_by_sm3"]["state"])
    (Array([ 9., 16.], dtype=float32), Array([ 9., 16.], dtype=float32))
    >>> [f"{x:.3f}" for x in tx.update(jnp.ones((2, 2)), state)[0].ravel()]
    ['0.316', '0.316', '0.316', '0.243']
    """

    equation = (
        r"v \leftarrow \min_a \mu_a + \lvert g\rvert^2, \quad \mu_a \leftarrow \max v, \quad "
        r"u \leftarrow u / \sqrt{v + \epsilon}"
    )
    maps_trees = True
    pure = True
    normalizes = True
    accumulates = True
    nonnegative = ("state",)

    eps: Hyper = hyper(default=1e-8, low=0)

    def init_tree(self, params: Any) -> Any:
        return jax.tree.map(lambda p: self._maxima(jnp.zeros_like(p.real)), params)

    def apply_tree(self, trees, state):
        gradients, treedef = jax.tree.flatten(trees.gradient)
        directions, before = jax.tree.leaves(trees.direction), treedef.flatten_up_to(state)
        out, after = [], []
        for g, u, maxima in zip(gradients, directions, before, strict=True):
            if g.ndim > 1:
                check_whole(self.title, g)
            v = self._least(maxima, g) + abs_sq(g)
            root = safe_sqrt(v + trees.scalars(g.dtype).eps)
            out.append(safe_divide(u, jnp.where(v == 0, 0, root)))
            after.append(tuple(new.astype(old.dtype) for new, old in zip(self._maxima(v), maxima, strict=True)))
        return treedef.unflatten(out), treedef.unflatten(after)

    def _maxima(self, v: jax.Array) -> tuple[jax.Array, ...]:
        """The maxima of each axis over all others."""
        if v.ndim < 2:
            return (v,)
        initial = None if v.size else 0
        return tuple(v.max([b for b in range(v.ndim) if b != axis], initial=initial) for axis in range(v.ndim))

    def _least(self, maxima: tuple[jax.Array, ...], g: jax.Array) -> jax.Array:
        """The least, for each element, of the maxima of its axes."""
        least = jnp.full(g.shape, jnp.inf, real_dtype(g.dtype))
        for axis, most in enumerate(maxima):
            sides = [size if axis == a else 1 for a, size in enumerate(g.shape)]
            least = jnp.minimum(least, jnp.broadcast_to(most.reshape(sides), g.shape).astype(least.dtype))
        return least
