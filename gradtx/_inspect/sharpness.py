"""The point uphill where sharpness-aware minimization takes its gradient."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
from jax.typing import ArrayLike

from gradtx._core.limits import Limits, checked
from gradtx._core.mesh import check_types
from gradtx._core.numerics import compute_dtype, norms, real_dtype, safe_divide
from gradtx._engine.inputs import FlatTree

__all__ = ["ascent_point"]


def ascent_point(params: Any, grads: Any, radius: ArrayLike = 0.05) -> Any:
    """Sharpness-aware minimization: where to take the second gradient, p + ρ·g/‖g‖; the norm is that over all leaves.

    The step is then taken from the parameters, with any chain: two gradients a step, of the same batch. At a gradient
    of 0 it is the parameters.

    Args:
        params: p.
        grads: g at p, of the same structure.
        radius: ρ ≥ 0, how far uphill. 0.05 as in the paper.

    Raises:
        ValueError: for trees or shapes that differ, a negative radius, or where types do not say which leaves are
            shards (see ``replicated``).
        TypeError: for a radius that is no number.

    Source: Foret et al. (2021), "Sharpness-aware minimization for efficiently improving generalization".

    >>> import gradtx, jax, jax.numpy as jnp
    >>> gradient, tx, p = jax.grad(lambda p: jnp.sum(p**4)), gradtx.sgd(0.1), jnp.array([1.0, 0.0])
    >>> point = gradtx.ascent_point(p, gradient(p), 0.1)
    >>> print(point, f"{gradtx.step(tx, p, gradient(point), tx.init(p))[0][0]:.3f}")
    [1.1 0. ] 0.468
    """
    check_types("ascent_point")
    if not isinstance(radius, jax.core.Tracer):
        checked("ascent_point: radius", radius, Limits(low=0))
    flat = FlatTree.of(params, "parameters")
    slopes = flat.like(grads, "gradients")
    share = safe_divide(radius, norms([slopes])[0])

    def moved(p: Any, g: Any) -> Any:
        wide = compute_dtype(p, g)
        return (p.astype(wide) + share.astype(real_dtype(wide)) * g.astype(wide)).astype(p.dtype)

    return flat.unflatten([moved(p, g) for p, g in zip(flat.leaves, slopes, strict=True)])
