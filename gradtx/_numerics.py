"""Numbers: which dtype arithmetic happens in, and the few operations that are singular at zero.

Arithmetic is in float32 or wider, whatever the leaves are stored in, and every function here has finite
derivatives at zero, so that one may differentiate through an update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


def compute_dtype(*xs: ArrayLike) -> jnp.dtype:
    """The dtype that arithmetic on these numbers happens in: their promotion, float32 at least.

    By their dtypes alone: a weakly typed float64 scalar, such as ``jnp.array(0.5)``, is float64 here.
    """
    return functools.reduce(jnp.promote_types, (jnp.result_type(x) for x in xs), jnp.dtype(jnp.float32))


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of the absolute value: float32 for complex64, float64 for complex128, else itself."""
    return jnp.finfo(dtype).dtype


def is_inexact(dtype: DTypeLike) -> bool:
    """Whether the dtype is floating or complex (bfloat16 and float16 included)."""
    return jnp.issubdtype(dtype, jnp.inexact)


def is_complex(dtype: DTypeLike) -> bool:
    """Whether the dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², real also for complex x, without the square root that ``abs`` takes."""
    if is_complex(x.dtype):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def mix(decay: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """One step of an exponential average: decay·old + (1 − decay)·new."""
    return decay * old + (1 - decay) * new


def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x whose derivative at 0 is 0 instead of infinite. NaN stays NaN; negative x gives NaN."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x/y, and 0 where y is 0, with derivative 0 there."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def sum_over(fn: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of ``fn`` over all elements of all arrays, in float32 or wider; 0 for none."""
    return sum((jnp.sum(fn(x)) for x in arrays), start=jnp.zeros((), jnp.float32))


def l2_norm(xs: Sequence[jax.Array], total: Callable[..., jax.Array] = sum_over) -> jax.Array:
    """The L2 norm over all elements of all arrays, a real scalar in the widest of their dtypes.

    Squares overflow long before the norm does (in float32 at 1.8e19), and vanish below 1e-23. Only when that
    happens is the sum taken again, over the arrays divided by their largest absolute value.

    Args:
        xs: the arrays.
        total: how to sum a function over all elements.
    """
    xs = [x for x in xs if x.size]
    squares = total(abs_sq, xs)
    if not xs:
        return squares
    info = jnp.finfo(squares.dtype)
    # Below tiny/eps the squares are subnormal or gone, and their digits with them.
    in_range = (squares < info.max) & (squares > info.tiny / info.eps)
    return jax.lax.cond(in_range, lambda squares, _: safe_sqrt(squares), _scaled_l2_norm, squares, xs)


def _scaled_l2_norm(total: jax.Array, xs: list[jax.Array]) -> jax.Array:
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x)).astype(total.dtype) for x in xs])
    largest = jax.lax.stop_gradient(largest)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = [jnp.sum(abs_sq(x / scale.astype(real_dtype(x.dtype)))) for x in xs]
    return scale * safe_sqrt(sum(squares, start=jnp.zeros_like(total)))
