"""Second moments in less memory than the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._core.limits import check_choice
from gradtx._core.mesh import check_whole, whole_shapes
from gradtx._core.numerics import abs_sq, mix, real_dtype
from gradtx.rules.base import Rule

__all__ = ["scale_by_factored_rms"]


class scale_by_factored_rms(Rule):
    r"""Divide by the root of a second moment of which only the sums of rows and columns are held: u ← g/√v.

    For a matrix, with q = |g|² + ε and β = 1 − t^(−p) in step t = 1, 2, ...::

        r ← βr + (1−β)·mean of q over columns;   c ← βc + (1−β)·mean of q over rows;   v = r cᵀ / mean(r)

    the matrix of rank one with these means. Of leaves of more axes the two largest are factored. Leaves with fewer
    than two axes of ``least`` elements keep a v of their own, v ← βv + (1−β)q. β is 0 in the first step, so the
    averages need no debiasing.

    Args:
        power: p ≥ 0. 0.8 as in the paper: an average that remembers longer and longer. 1: all steps alike; 0: the last
            one alone.
        eps: ε > 0, inside the square. 1e-30 as in the paper.
        least: the least size of the two axes for a leaf to be factored. 128 as in optax: small leaves cost nothing.
        axes: "largest": the two largest axes of a leaf are factored; "last": the last two, as torch and Keras have it.
        floor: f of the divisor, 0: v = r cᵀ / max(mean(r), f), at least f². None: the epsilon of the leaf's dtype, as
            in torch: gradients of less than 3e-4, in float32, then take longer steps than the paper has.
        offset: the number of steps before the first one of p's count, for a training that goes on with other data. 0.

    State: ``state``, a dict of ``rows``, ``columns`` and ``s``, trees like the parameters with None where a leaf has
    none.

    A NaN stays in its element, and makes a factored leaf NaN as a whole, from then on. A gradient whose square
    overflows, above 1.8e19 in float32, makes v infinite, and the step 0 from then on: of a factored leaf as a whole.

    Raises:
        ValueError: for a ``power``, ``eps``, ``least``, ``axes`` or ``floor`` out of range; for a shard of a leaf that
            is factored, or may be as a whole, inside of ``jax.shard_map``.

    Source: Shazeer & Stern (2018), "Adafactor: adaptive learning rates with sublinear memory cost", Algorithm 4.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_factored_rms(least=2), jnp.array([[1.0, -2.0, 3.0], [2.0, -4.0, 6.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates.round(3))
    [[ 1. -1.  1.]
     [ 1. -1.  1.]]
    >>> jax.tree.map(jnp.shape, state.slots["scale_by_factored_rms"]["state"])
    {'columns': (3,), 'rows': (2,), 's': None}
    """

    equation = (
        r"r \leftarrow \beta_t r + (1-\beta_t) \overline{g^2}_{\mathrm{columns}}, \quad "
        r"c \leftarrow \beta_t c + (1-\beta_t) \overline{g^2}_{\mathrm{rows}}, \quad "
        r"u \leftarrow g / \sqrt{r c^\top / \overline{r}}"
    )
    maps_trees = True
    pure = True
    accumulates = True
    normalizes = True
    nonnegative = ("state",)

    power: float = 0.8
    eps: float = 1e-30
    least: int = 128
    axes: str = dataclasses.field(default="largest", kw_only=True)
    floor: float | None = dataclasses.field(default=0.0, kw_only=True)
    offset: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.power < float("inf"):
            raise ValueError(f"scale_by_factored_rms: power must be a number of 0 or more, found {self.power!r}")
        if not self.eps > 0:
            raise ValueError(f"scale_by_factored_rms: eps must be greater than 0, found {self.eps!r}")
        if self.least < 1:
            raise ValueError(f"scale_by_factored_rms: least must be at least 1, found {self.least!r}")
        check_choice("scale_by_factored_rms", "axes", self.axes, ("largest", "last"))
        if self.floor is not None and not self.floor >= 0:
            raise ValueError(f"scale_by_factored_rms: floor must be 0 or more, or None, found {self.floor!r}")

    def init_tree(self, params: Any) -> dict[str, Any]:
        def zeros(kind: str) -> Any:
            return jax.tree.map(lambda p: self._held(abs_sq(jnp.zeros_like(p))).get(kind), params)

        return {kind: zeros(kind) for kind in ("rows", "columns", "s")}

    def apply_tree(self, trees, state):
        gradients, treedef = jax.tree.flatten(trees.gradient)
        for g in gradients:
            if any(self._axes(shape) is not None for shape in whole_shapes(g)):
                check_whole(self.title, g)
        before = [treedef.flatten_up_to(state[kind]) for kind in ("rows", "columns", "s")]
        out, after = [], []
        for g, rows, columns, s in zip(gradients, *before, strict=True):
            averages = {"rows": rows, "columns": columns, "s": s}
            since = jnp.maximum(trees.count - self.offset, 0) if self.offset else trees.count
            share = (since.astype(real_dtype(g.dtype)) + 1) ** -self.power  # 1 − β
            new = self._held(abs_sq(g) + self.eps)
            averages = {
                kind: x if x is None else mix(1 - share, share, x, new[kind]).astype(x.dtype)
                for kind, x in averages.items()
            }
            out.append(g * self._inverse_root(averages, g.shape))
            after.append(averages)
        trees_after = {
            kind: treedef.unflatten([averages[kind] for averages in after]) for kind in ("rows", "columns", "s")
        }
        return treedef.unflatten(out), trees_after

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The two axes of a leaf that is factored, of the two largest the smaller one first; else None."""
        if len(shape) < 2:
            return None
        order = np.argsort(shape, kind="stable") if self.axes == "largest" else range(len(shape))
        smaller, larger = order[-2:]
        return None if min(shape[smaller], shape[larger]) < self.least else (int(smaller), int(larger))

    def _held(self, squares: jax.Array) -> dict[str, jax.Array]:
        """The squares as they are held: their means over either axis, or all of them."""
        axes = self._axes(squares.shape)
        if axes is None:
            return {"s": squares}
        smaller, larger = axes
        return {"rows": squares.mean(larger), "columns": squares.mean(smaller)}

    def _inverse_root(self, averages: dict[str, Any], shape: tuple[int, ...]) -> jax.Array:
        axes = self._axes(shape)
        dtype = averages["s" if axes is None else "rows"].dtype
        floor = float(jnp.finfo(dtype).eps) if self.floor is None else self.floor
        if axes is None:
            inverse = jax.lax.rsqrt(averages["s"])
        else:
            smaller, larger = axes
            rows, columns = jnp.expand_dims(averages["rows"], larger), jnp.expand_dims(averages["columns"], smaller)
            # Three roots, since products and quotients of squares may be too small for a float.
            mean = rows.mean(smaller, keepdims=True)
            inverse = jax.lax.rsqrt(rows) * jnp.sqrt(jnp.maximum(mean, floor) if floor else mean)
            inverse = jnp.where(mean == jnp.inf, 0, inverse * jax.lax.rsqrt(columns))
        return jnp.minimum(inverse, 1 / floor) if floor else inverse
