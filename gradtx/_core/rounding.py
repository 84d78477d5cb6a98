"""Rounding at random: up as often as a number is near to the one above, so that the mean stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir


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


def dithered(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Numbers that bfloat16 has, in float32, one of the two next to each element of ``x``; Inf and NaN as they are."""
    return dither_p.bind(x, jnp.asarray(seed, jnp.float32))


def _reference(x: jax.Array, seed: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = bits + (noise(x.shape, seed) >> 16)
    cut = jax.lax.bitcast_convert_type(up & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x)


dither_p = core.Primitive("dither_bf16")
"""``dithered``, as one instruction for a kernel that knows it."""


@functools.partial(jax.jit, inline=False)
def _compiled(x: jax.Array, seed: jax.Array) -> jax.Array:
    return _reference(x, seed)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    (x, seed), (dx, _) = primals, tangents
    return dithered(x, seed), ad.Zero(jax.typeof(x)) if isinstance(dx, ad.Zero) else dx


def _batch(operands: Sequence[Any], axes: Sequence[Any]) -> tuple[Any, Any]:
    return jax.vmap(_reference, in_axes=tuple(axes))(*operands), 0


dither_p.def_impl(_compiled)
dither_p.def_abstract_eval(lambda x, seed: x.update(weak_type=False))
ad.primitive_jvps[dither_p] = _jvp
batching.primitive_batchers[dither_p] = _batch
mlir.register_lowering(dither_p, mlir.lower_fun(_reference, multiple_results=False))
