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


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x whose derivative at 0 is 0 instead of infinite. NaN stays NaN; negative x gives NaN."""
    return jax.lax.sqrt(x)


@safe_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return safe_sqrt(x), jnp.where(x == 0, 0, dx / (2 * jnp.sqrt(jnp.where(x == 0, 1, x))))


@jax.custom_jvp
def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x/y, and 0 where y is 0, with derivative 0 there."""
    quotient = x / y
    return jax.lax.select(jnp.broadcast_to(y == 0, quotient.shape), jax.lax.full_like(quotient, 0), quotient)


@safe_divide.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    quotient = safe_divide(x, y)
    return quotient, jnp.where(y == 0, 0, (dx - quotient * dy) / jnp.where(y == 0, 1, y))


def sum_over(fn: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array]) -> jax.Array:
    """The sum of ``fn`` over all elements of all arrays, in float32 or wider; 0 for none."""
    return sum((jnp.sum(fn(x)) for x in arrays), start=jnp.zeros((), jnp.float32))


def l2_norm(xs: Sequence[jax.Array]) -> jax.Array:
    """The L2 norm over all elements of all arrays; see ``l2_norms``."""
    return l2_norms([xs])[0]


def l2_norms(groups: Sequence[Sequence[jax.Array]], total: Callable[..., jax.Array] = sum_over) -> jax.Array:
    """Of each group of arrays the L2 norm over all their elements: a real vector in the widest of their dtypes.

    Squares overflow long before a norm does (in float32 at 1.8e19), and vanish below 1e-23. Only when that happens to
    one of them are the sums taken again, those of the arrays times a power of two. The derivative at 0 is 0.

    Args:
        groups: lists of arrays.
        total: how to sum a function over all elements of arrays.
    """
    groups = [[x for x in xs if x.size] for xs in groups]
    if not any(groups):
        return jnp.zeros(len(groups), jnp.float32)
    return _l2_norms(groups, total)


Carry = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _l2_norms(groups: list[list[jax.Array]], total: Callable[..., jax.Array]) -> jax.Array:
    dtype = functools.reduce(jnp.promote_types, (real_dtype(x.dtype) for xs in groups for x in xs))
    info = jnp.finfo(dtype)
    smaller, larger = (jnp.asarray(2.0 ** int(share * info.maxexp), dtype) for share in (-0.7, 0.78))

    def in_range(squares: jax.Array) -> jax.Array:
        # Below tiny/eps the squares are subnormal or gone, and their digits with them.
        return (squares < info.max) & (squares > info.tiny / info.eps)

    # A loop, and not a branch, so that the sums are compiled once: the second time they are the same at another scale.
    def again(carry: Carry) -> jax.Array:
        times, squares, _ = carry
        return (times == 0) | ((times == 1) & ~in_range(squares).all())

    def add(carry: Carry) -> Carry:
        times, squares, _ = carry
        scales = jnp.where((times == 0) | in_range(squares), 1, jnp.where(squares < 1, larger, smaller))
        sums = [
            total(lambda x, scale=scale: abs_sq(x * scale.astype(real_dtype(x.dtype))), xs).astype(dtype)
            for scale, xs in zip(scales, groups, strict=True)
        ]
        return times + 1, jnp.stack(sums), scales

    start = jnp.zeros((), jnp.int32), jnp.zeros(len(groups), dtype), jnp.ones(len(groups), dtype)
    _, squares, scales = jax.lax.while_loop(again, add, start)
    return jnp.sqrt(squares) / scales


@_l2_norms.defjvp
def _(
    total: Callable[..., jax.Array], primals: tuple[list[list[jax.Array]]], tangents: tuple[list[list[jax.Array]]]
) -> tuple[jax.Array, jax.Array]:
    (groups,), (tangent,) = primals, tangents
    norms = _l2_norms(groups, total)
    along = [
        sum(
            (
                jnp.sum((safe_divide(x, norm.astype(x.dtype)).conj() * dx).real).astype(norm.dtype)
                for x, dx in zip(xs, dxs, strict=True)
            ),
            start=jnp.zeros_like(norm),
        )
        for norm, xs, dxs in zip(norms, groups, tangent, strict=True)
    ]
    return norms, jnp.stack(along)
