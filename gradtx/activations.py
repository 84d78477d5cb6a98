"""The review article's activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["maxout", "relu"]


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """Rectified linear unit: max(x, 0), elementwise, in the dtype of x; the derivative at 0 is 0.

    (``jnp.maximum(x, 0)`` has derivative ½ there.) NaN stays NaN.

    Source: Nair & Hinton (2010), "Rectified linear units improve restricted Boltzmann machines".

    >>> import gradtx, jax, jax.numpy as jnp
    >>> print(gradtx.relu(jnp.array([-1.0, 0.0, 2.0])), jax.grad(gradtx.relu)(0.0))
    [0. 0. 2.] 0.0
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return relu(x), jnp.where(x > 0, dx, jnp.zeros_like(dx))


def maxout(x: jax.Array, group_size: int) -> jax.Array:
    """Maximum over consecutive groups of the last axis, a learnable activation: (..., n·k) to (..., n) for groups of k.

    Of k affine functions it makes a convex, piecewise linear one of up to k pieces. Elements that tie for the maximum
    share the gradient evenly. A NaN makes its group NaN.

    Args:
        x: at least one axis; the last one in groups, neighbours together.
        group_size: k ≥ 1.

    Raises:
        ValueError: if x is a scalar, or its last axis cannot be divided into groups of k.

    Source: Goodfellow et al. (2013), "Maxout networks".

    >>> import gradtx, jax.numpy as jnp
    >>> print(gradtx.maxout(jnp.array([1.0, 5.0, -2.0, -3.0]), 2))
    [ 5. -2.]
    """
    if group_size < 1:
        raise ValueError(f"maxout: group_size must be at least 1, found {group_size}")
    *batch, size = jnp.shape(x) or (0,)
    if jnp.ndim(x) == 0 or size % group_size:
        raise ValueError(f"maxout: the last axis of shape {jnp.shape(x)} cannot be divided into groups of {group_size}")
    return jnp.max(jnp.reshape(x, (*batch, size // group_size, group_size)), axis=-1)
