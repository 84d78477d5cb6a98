"""Promotion of dtypes: the library says itself where it promotes, whatever jax's setting for arrays is."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def promoted(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype that holds all of these."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes[1:], jnp.dtype(dtypes[0]))
