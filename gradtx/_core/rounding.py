"""Rounding at random: up as often as a number is near to the one above, so that the mean stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

F = TypeVar("F", bound=Callable[..., Any])

INSTRUCTION = "gradtx_"
"""The beginning of the names of compiled functions that the kernel has an instruction for."""


def instruction(function: F) -> F:
    """A function that the kernel may know by its name, as one instruction; elsewhere it is compiled as it is."""
    function.__name__ = INSTRUCTION + function.__name__
    compiled: Any = jax.jit(function)
    return compiled


def mixed(x: jax.Array) -> jax.Array:
    """A hash of each number, uint32 (the finalizer of MurmurHash3, a bijection)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def noise(shape: Sequence[int], seed: jax.Array) -> jax.Array:
    """Random bits for each element, uint32: a hash of its place and the seed, a whole number in float32.

    The place is multiplied and folded before the seed is added, so that the bits of two seeds are no shift of each
    other. The kernel computes the same.
    """
    place = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    place = place * jnp.uint32(0x9E3779B9)
    return mixed((place ^ (place >> 15)) + seed.astype(jnp.uint32))


@jax.custom_jvp
def dithered(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Numbers that bfloat16 has, in float32, one of the two next to each element of ``x``; Inf and NaN as they are.

    The derivative is that of ``x``, as of every rounding.
    """
    return dither_bf16(x, jnp.asarray(seed, jnp.float32))


@dithered.defjvp
def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    return dithered(*primals), tangents[0]


@instruction
def dither_bf16(x: jax.Array, seed: jax.Array) -> jax.Array:
    """``dithered``, as the kernel knows it."""
    up = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise(x.shape, seed) >> 16)
    cut = jax.lax.bitcast_convert_type(up & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x)
