"""Counts in states: int32 scalars that stay at their maximum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def zero() -> jax.Array:
    """A count before the first step."""
    return jnp.zeros((), jnp.int32)


def incremented(count: Any) -> jax.Array:
    """The count after one more, in its own dtype."""
    return jnp.asarray(optax.safe_increment(count))
