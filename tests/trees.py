"""Arrays of random numbers, and the types of trees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers, of a complex dtype in both parts."""
    x = np.random.default_rng(seed).normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * np.random.default_rng(seed + 1).normal(size=shape)
    return jnp.asarray(x, dtype)


def types(tree: Any) -> Any:
    """The structure, and of each leaf shape, dtype and whether the dtype is weak."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype, x.weak_type) for x in leaves]
