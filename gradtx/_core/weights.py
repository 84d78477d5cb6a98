"""Parameters of low precision, and what is kept beside them of their numbers in float32.

bfloat16 is the upper half of float32, so that all of this is arithmetic of integers. Where a compiler takes a number
that was rounded to bfloat16 for what it was before, as some do, nothing is lost: nothing here is rounded by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.codecs import Codec, Stored
from gradtx._core.numerics import widened
from gradtx._core.rounding import dithered, instruction, noise


@dataclass(frozen=True)
class Kept(Codec):
    """A number of float32 as one of low precision, rounded, and ``keep`` beside it.

    Attributes:
        keep: "float32", the number; "int16" or "int8", so many of the bits that bfloat16 does not have; None, nothing.
            Where bits are lost, it is rounded at random.
        dtype: of low precision; bfloat16, or any where the number itself is kept.
    """

    keep: str | None
    dtype: str = "bfloat16"

    @property
    def parts(self) -> int:
        return 1 if self.keep is None else 2

    @property
    def rounds(self) -> bool:
        return self.keep in ("int8", None)

    @property
    def bytes(self) -> float:
        return sum(jnp.dtype(dtype).itemsize for dtype in (self.dtype, self.keep) if dtype is not None)

    def encode(self, x: Any, seed: jax.Array | None = None, nonnegative: bool = False) -> Weight:
        del nonnegative
        if self.keep == "float32":
            return Weight(x.astype(self.dtype), x, self)
        if self.keep == "int16":
            return Weight(upper(x), lower_i16(x), self)
        if self.keep == "int8":
            x = dither_f24(x, jnp.asarray(seed))
            return Weight(upper(x), lower_i8(x), self)
        return Weight(dithered(x, jnp.asarray(seed)).astype(self.dtype), None, self)

    def decode(self, *parts: jax.Array) -> jax.Array:
        if self.keep is None or self.keep == "float32":
            return widened(parts[-1])
        return (join_i16 if self.keep == "int16" else join_i8)(*parts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weight(Stored):
    """A parameter of float32 as it is stored: one leaf to the engine.

    Attributes:
        param: of low precision.
        kept: the array beside it, or None.
        codec: the format; static.
    """

    param: Any
    kept: Any
    codec: Kept = field(metadata={"static": True})

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.param,) if self.kept is None else (self.param, self.kept)

    def of(self, *parts: Any) -> Weight:
        param, *kept = parts
        return replace(self, param=param, kept=kept[0] if kept else None)


@instruction
def upper(x: jax.Array) -> jax.Array:
    """The number of bfloat16 next to each of float32; of two as near, that of the larger modulus."""
    return jax.lax.bitcast_convert_type(_upper(_bits(x)).astype(jnp.uint16), jnp.bfloat16)


@instruction
def lower_i16(x: jax.Array) -> jax.Array:
    """The bits of each number, as an integer, less those of ``upper``."""
    return _lower(x).astype(jnp.int16)


@instruction
def lower_i8(x: jax.Array) -> jax.Array:
    """``lower_i16`` of numbers that end with eight zero bits, without these."""
    return (_lower(x) >> 8).astype(jnp.int8)


@instruction
def join_i16(param: jax.Array, lower: jax.Array) -> jax.Array:
    """The numbers of ``upper`` and ``lower_i16``."""
    return _joined(param, lower.astype(jnp.int32))


@instruction
def join_i8(param: jax.Array, lower: jax.Array) -> jax.Array:
    """The numbers of ``upper`` and ``lower_i8``."""
    return _joined(param, lower.astype(jnp.int32) << 8)


@instruction
def dither_f24(x: jax.Array, seed: jax.Array) -> jax.Array:
    """One of the two numbers next to each that end with eight zero bits, at random; Inf and NaN as they are."""
    up = jax.lax.bitcast_convert_type(x, jnp.uint32) + (noise(x.shape, seed) >> 24)
    cut = jax.lax.bitcast_convert_type(up & jnp.uint32(0xFFFFFF00), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x)


def _bits(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(x), jnp.uint32(0x7FC00000), jax.lax.bitcast_convert_type(x, jnp.uint32))


def _upper(bits: jax.Array) -> jax.Array:
    return (bits + jnp.uint32(0x8000)) >> 16


def _lower(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    return (bits - (_upper(bits) << 16)).astype(jnp.int32)


def _joined(param: jax.Array, lower: jax.Array) -> jax.Array:
    bits = (jax.lax.bitcast_convert_type(param, jnp.uint16).astype(jnp.uint32) << 16) + lower.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
