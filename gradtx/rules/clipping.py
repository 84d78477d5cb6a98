"""Rules that bound the direction."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradtx._core.contract import Arrays, Named, Total
from gradtx._core.numerics import Numbers, in_two, norms
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["clip_by_global_norm", "clip_by_norm", "clip_by_value"]


class clip_by_value(Rule):
    r"""Clip each element to [−limit, limit]. Infinite elements become ±limit; NaN stays NaN.

    Args:
        limit: ≥ 0.

    Raises:
        TypeError: for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_value(1.0)
    >>> updates, state = tx.update(jnp.array([0.5, -3.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.5 -1. ]
    """

    equation = r"u \leftarrow \min(\max(u, -c), c)"
    real_only = True

    limit: Hyper = hyper(low=0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.clip(signal.direction, -c.limit, c.limit)), {}


class clip_by_norm(Rule):
    r"""Shrink each leaf whose L2 norm exceeds the limit to that norm: u ← u·min(1, limit/‖u‖).

    Within the limit a leaf stays as it is, to the last bit. The norm is taken in float32 or wider and does not
    overflow before 3.4e38. A leaf with an inf or NaN in it has no norm, and becomes NaN as a whole: never a silent
    zero.

    Args:
        limit: ≥ 0.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_norm(1.0)
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [0.6 0.8]
    """

    equation = r"u \leftarrow u \min(1, c / \lVert u\rVert)"
    scope = "leaf"

    limit: Hyper = hyper(low=0)

    def measure(self, groups: Sequence[Sequence[jax.Array]], total: Total) -> Numbers:
        return norms(groups, total)

    def settle(self, c: Named, measured: jax.Array) -> Arrays:
        return shortening(measured, c.limit)

    def shows_finite(self, measured):
        return jnp.isfinite(measured)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.length * (c.inverse * signal.direction)), {}


class clip_by_global_norm(clip_by_norm):
    r"""Shrink all leaves together if their joint L2 norm exceeds the limit: u ← u·min(1, limit/‖all u‖).

    Keeps the direction of the whole update, which is why the review article prefers it. Otherwise as
    ``clip_by_norm``: one inf or NaN anywhere makes every leaf NaN.

    Args:
        limit: ≥ 0.

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.clip_by_global_norm(1.0), {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates["a"], updates["b"])
    [0.6] [0.8]
    """

    equation = r"u \leftarrow u \min(1, c / \lVert (u_1, u_2, \dots)\rVert)"
    scope = "tree"


def shortening(length: jax.Array, limit: jax.Array) -> dict[str, jax.Array]:
    """Two factors that make a length one of the limit, or less; the first is NaN for a length that is not finite."""
    inverse, rest = (jnp.where(length > limit, factor, 1) for factor in in_two(limit, length))
    return {"inverse": jnp.where(jnp.isfinite(length), inverse, jnp.nan), "length": rest}
