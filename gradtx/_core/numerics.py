"""Numbers: which dtype arithmetic happens in, and the few operations that are singular at zero.

Arithmetic is in float32 or wider, whatever the leaves are stored in, and every function here has finite
derivatives at zero, so that one may differentiate through an update.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from gradtx._core.dtypes import promoted
from gradtx._core.mesh import size_of, sum_of, sums_of


def compute_dtype(*xs: ArrayLike) -> jnp.dtype:
    """The dtype that arithmetic on these numbers happens in: their promotion, float32 at least.

    By their dtypes alone: a weakly typed float64 scalar, such as ``jnp.array(0.5)``, is float64 here.
    """
    return widest(*(jnp.result_type(x) for x in xs))


@functools.lru_cache(maxsize=256)
def widest(*dtypes: jnp.dtype) -> jnp.dtype:
    """The promotion of dtypes, float32 at least; so also of float8 and others, for which jax promotes nothing."""
    wide = [jnp.dtype(jnp.float32) if has_few_bits(dtype) else dtype for dtype in dtypes]
    return promoted(jnp.float32, *wide)


def has_few_bits(dtype: DTypeLike) -> bool:
    """True if the dtype is a floating one of 8 bits or fewer."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2


def added(param: jax.Array, update: jax.Array) -> jax.Array:
    """The parameter after an update, as ``optax.apply_updates`` has it; float8 is added in float32."""
    dtypes = (param.dtype, update.dtype)
    wide = (widest if any(map(has_few_bits, dtypes)) else promoted)(*dtypes)
    return (param.astype(wide) + update.astype(wide)).astype(param.dtype)


def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of the absolute value: float32 for complex64, float64 for complex128, else itself."""
    return jnp.finfo(dtype).dtype


def is_inexact(dtype: DTypeLike) -> bool:
    """True if the dtype is floating or complex (bfloat16 and float16 included)."""
    return jnp.issubdtype(dtype, jnp.inexact)


def is_complex(dtype: DTypeLike) -> bool:
    """True if the dtype is complex."""
    return jnp.issubdtype(dtype, jnp.complexfloating)


def widened(x: Any) -> Any:
    """A low-precision array, abstract ones included, in float32; anything else as it is."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not is_inexact(dtype) or compute_dtype(x) == dtype:
        return x
    wide = compute_dtype(x)
    return x.update(dtype=wide) if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x, wide)


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², real also for complex x, without the square root that ``abs`` takes; inf where it overflows.

    The maximum changes nothing, but through it no compiler takes √(x²) for |x|, which is finite where x² is not. The
    minimum changes no square: no compiler takes (a·b)² for a²·b², of which either factor may overflow.
    """
    if is_complex(x.dtype):
        return abs_sq(x.real) + abs_sq(x.imag)
    return jnp.maximum(jnp.square(jnp.minimum(x, jnp.finfo(x.dtype).max)), -1)


def real_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Re x̄·y of each element: that of a complex number and its phase, turned alike, stays."""
    return (x.conj() * y.astype(x.dtype)).real


def scaled_sq(x: jax.Array, scale: jax.Array) -> jax.Array:
    """|x·scale|², whatever is known of x."""
    return abs_sq(x * scale)


def split(value: ArrayLike, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """A number as the sum of two of a dtype: itself rounded, and the residual, which is 0 if nothing was rounded.

    From 1 − β of a rounded β the digits are gone that β shares with 1: for 0.9999 all but four. The residual has them.
    """
    if isinstance(value, jax.Array):
        rounded = value.astype(dtype)
        wide = promoted(value.dtype, dtype)
        residual = (value.astype(wide) - rounded.astype(wide)).astype(dtype)
        return rounded, jnp.where(jnp.isfinite(rounded), residual, 0)
    exact = np.asarray(value, np.float64)
    if jax.config.values["jax_debug_infs"]:  # an infinite limit is no fault, and would be taken for one in each state
        most = float(jnp.finfo(dtype).max)
        exact = np.clip(exact, -most, most)
    rounded = exact.astype(dtype)
    with np.errstate(invalid="ignore"):
        residual = np.where(np.isfinite(rounded), exact - rounded.astype(np.float64), 0).astype(dtype)
    return jax.device_put(rounded), jax.device_put(residual)


def residual_of(name: str) -> str:
    """The name under which a state holds the residual of a hyperparameter."""
    return f"{name}_residual"


def without_residuals(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters alone, of all that a state holds of a rule's."""
    residuals = {residual_of(name) for name in values}
    return {name: value for name, value in values.items() if name not in residuals}


def complement(values: Mapping[str, Any], name: str) -> jax.Array:
    """1 minus a hyperparameter, by name from those that a state holds, exact to rounding."""
    value = jnp.asarray(values[name])
    return (1 - value) - values.get(residual_of(name), 0)


def fade(decay: jax.Array, complement: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """decay·old + new, for a decay of more digits than its dtype has: those that the complement, 1 − decay, has.

    The decay goes in as two numbers above 0, so that an infinite ``old`` stays what it is.
    """
    lower = decay * (1 - jnp.finfo(decay.dtype).eps)
    lost = jnp.where(decay < 0.5, 0, (1 - decay) - complement)  # below ½ the difference is the less exact of the two
    return lower * old + (new + ((decay - lower) + lost) * old)


def mix(decay: jax.Array, complement: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """One step of an exponential average: decay·old + complement·new, where the complement is 1 − decay.

    The weights sum to 1, so that it settles at a number that does not change; one step from 0 is complement·new.
    """
    return fade(decay, complement, old, complement * new)


def weighted(weight: jax.Array, x: jax.Array) -> jax.Array:
    """weight·x, and 0 where the weight is 0, of an infinite x too: a square that overflowed and does not count."""
    return jnp.where(weight == 0, 0, weight * x)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x whose derivative at 0 is 0 instead of infinite. NaN stays NaN; negative x gives NaN."""
    return jax.lax.sqrt(x)


@safe_sqrt.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return safe_sqrt(x), jnp.where(x == 0, 0, dx / (2 * jnp.sqrt(jnp.where(x == 0, 1, x))))


@jax.custom_jvp
@functools.partial(jax.jit, inline=True)  # one operation outside of jit as well, in which nobody sees 0/0
def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x/y, and 0 where y is 0, with derivative 0 there."""
    zero = y == 0
    if y.size < np.size(x):  # a compiler multiplies by 1/y then, which beyond 8.5e37 is no normal number
        down = jnp.where(abs(y) > 1, 0.25, 1).astype(y.dtype)
        x, y = x * down, y * down
    quotient = x / y
    if zero.ndim and zero.shape != quotient.shape:
        zero = zero | jax.lax.full_like(quotient, False, bool)  # which is also sharded as the quotient is
    return jax.lax.select(zero, jax.lax.full_like(quotient, 0), quotient)


@safe_divide.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    quotient = safe_divide(x, y)
    return quotient, jnp.where(y == 0, 0, (dx - quotient * dy) / jnp.where(y == 0, 1, y))


def in_two(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x/y as two factors, 4/y and x/4, since x/y and 1/y may be too small for a normal number; 0 where y is 0."""
    return safe_divide(jnp.full_like(y, 4), y), x / 4


Numbers = list[jax.Array] | jax.Array
"""Numbers as a list or as a vector, as whoever computes them likes best. XLA compiles the same few operations once for
all numbers of a list, but the cutting of one out of a vector once for each place; the compiled kernel takes vectors."""


def on_each(fn: Callable[..., Any], *numbers: Numbers) -> Any:
    """An elementwise function of each number: of a vector at once."""
    if isinstance(numbers[0], list):
        return [fn(*row) for row in zip(*numbers, strict=True)]
    return fn(*numbers)


def stacked(numbers: Numbers) -> jax.Array:
    """Numbers as a vector. From a list the compiler makes a program that copies them, and does not compute them too."""
    return jnp.stack(jax.lax.optimization_barrier(numbers)) if isinstance(numbers, list) else numbers


def in_order(numbers: Numbers, places: Sequence[int]) -> jax.Array:
    """The numbers at these places as a vector."""
    if isinstance(numbers, list):
        return stacked([numbers[place] for place in places])
    if list(places) == list(range(numbers.size)):
        return numbers
    return numbers.at[np.asarray(places)].get(mode="promise_in_bounds")


class SumOver:
    """Sums of a function over all elements of arrays, in all shards, in float32 or wider."""

    def __call__(self, fn: Callable[..., jax.Array], *columns: Sequence[jax.Array]) -> jax.Array:
        """The sum of ``fn``, of one array of each column, over all elements of all of them; 0 for none.

        The compiler may not reorder the products in ``fn`` and those that made the arrays.
        """
        return self.of_shards(self.of_arrays(fn, *columns))

    def of_arrays(self, fn: Callable[..., jax.Array], *columns: Sequence[jax.Array]) -> list[jax.Array]:
        """The sum over each row of arrays, or of shards of them."""
        return [jnp.sum(fn(*jax.lax.optimization_barrier(row))) for row in zip(*columns, strict=True)]

    def norms(self, xs: Sequence[jax.Array], vector: bool = False) -> Numbers | None:
        """The norm of each array, if it takes one reading whatever the numbers are; else None.

        Args:
            xs: the arrays.
            vector: whether a vector is wanted; where not, a list is as good.
        """
        del xs, vector
        return None

    def of_shards(self, numbers: Sequence[jax.Array]) -> jax.Array:
        """The sum of numbers, and over all shards."""
        return sum_of(numbers)

    def size(self, x: jax.Array) -> int:
        """The number of elements of an array, over all shards."""
        return size_of(x)

    def each_of_shards(self, numbers: Sequence[jax.Array]) -> list[jax.Array]:
        """The sum of each number over all shards."""
        return sums_of(numbers)

    def each(
        self, fn: Callable[..., jax.Array], *columns: Sequence[jax.Array], local: Sequence[Numbers] = ()
    ) -> Numbers:
        """The sums over the arrays of each row, of which ``fn`` gets the numbers of its own behind them."""
        k = len(columns)
        rows = zip(*columns, *local, strict=True)
        sums = [self.of_arrays(lambda *xs, scalars=row[k:]: fn(*xs, *scalars), *([x] for x in row[:k])) for row in rows]
        return self.each_of_shards([x for (x,) in sums])


sum_over = SumOver()


def l2_norm(xs: Sequence[jax.Array]) -> jax.Array:
    """The L2 norm over all elements of all arrays; see ``norms``."""
    return norms([xs])[0]


def norms(groups: Sequence[Sequence[jax.Array]], total: SumOver = sum_over) -> Numbers:
    """The L2 norm of each group of arrays, over all their elements: real numbers in the widest of their dtypes.

    Squares overflow long before a norm does (in float32 at 1.8e19), and vanish below 1e-19. Only when that happens to
    one of them are the sums taken again, each of the arrays times a power of two. The derivative at 0 is 0.

    Args:
        groups: lists of arrays.
        total: how to sum a function over all elements of arrays; the same one each time, for what is compiled.
    """
    groups = [[x.astype(compute_dtype(x)) for x in xs if x.size] for xs in groups]
    if not any(groups):
        return [jnp.zeros((), jnp.float32) for _ in groups]
    return _l2_norms(groups, total)


def reductions(hows: Sequence[str], columns: Sequence[Sequence[jax.Array]], total: SumOver = sum_over) -> list[Numbers]:
    """Each array of each column as one number: its "sum", its "norm", or "max", the largest absolute value.

    All norms are taken at once, and all sums: they share what adds them up over devices.
    """
    each = {
        "sum": lambda xs: total.each(_itself, xs),
        "norm": lambda xs: norms([[x] for x in xs], total),
        "max": lambda xs: [jnp.max(jnp.abs(x), initial=0) for x in xs],
    }
    numbers: dict[int, Numbers] = {}
    for kind, reduced in each.items():
        places = [k for k, how in enumerate(hows) if how == kind]
        in_a_row = reduced([x for k in places for x in columns[k]])
        ends = np.cumsum([0, *(len(columns[k]) for k in places)])
        numbers |= {k: in_a_row[i:j] for k, (i, j) in zip(places, itertools.pairwise(ends), strict=True)}
    return [numbers[k] for k in range(len(hows))]


def reductions_of(
    fn: Callable[..., Sequence[jax.Array]],
    rows: Sequence[Sequence[jax.Array]],
    hows: Sequence[str],
    total: SumOver = sum_over,
) -> list[Numbers]:
    """Each result of an elementwise function, for each row of arrays, as one number: its "sum" or its "norm".

    As ``reductions`` of arrays of it, but a compiler need not make these. All rows are of the same dtypes.
    """
    results = [_Result(fn, k) for k in range(len(hows))]
    normed = [result for result, how in zip(results, hows, strict=True) if how == "norm"]
    known = dict(zip(normed, _norms_of(tuple(normed), [[*row] for row in rows], total), strict=True)) if normed else {}
    return [known[x] if x in known else total.each(x, *zip(*rows, strict=True)) for x in results]


@dataclass(frozen=True)
class _Result:
    """One result of a function, in float32 or wider."""

    fn: Callable[..., Sequence[jax.Array]]
    place: int

    def __call__(self, *arrays: jax.Array) -> jax.Array:
        x = self.fn(*arrays)[self.place]
        return x.astype(compute_dtype(x))


def _itself(x: jax.Array) -> jax.Array:
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
@functools.partial(jax.jit, static_argnums=1)
def _l2_norms(groups: list[list[jax.Array]], total: SumOver) -> Numbers:
    dtypes = sorted({real_dtype(x.dtype) for xs in groups for x in xs}, key=lambda dtype: dtype.itemsize)
    by_width = [_norms([[x for x in xs if real_dtype(x.dtype) == d] for xs in groups], d, total) for d in dtypes]
    by_width = [on_each(lambda norm: norm.astype(dtypes[-1]), norms) for norms in by_width]
    return by_width[0] if len(by_width) == 1 else functools.reduce(jnp.hypot, map(stacked, by_width))


def _norms(groups: list[list[jax.Array]], dtype: jnp.dtype, total: SumOver) -> Numbers:
    """The norms of arrays that are all of one width, which alone says what overflows."""
    alone = all(len(xs) == 1 for xs in groups)
    if (each := total.norms([x for xs in groups for x in xs], vector=not alone)) is not None:
        if alone:
            return on_each(lambda norm: norm.astype(dtype), each)
        each, ends = stacked(each), np.cumsum([0, *map(len, groups)])
        return [norm_of_norms(each[i:j]).astype(dtype) for i, j in itertools.pairwise(ends)]

    def sums(fn: Callable[..., jax.Array], *local: Numbers) -> Numbers:
        if alone:
            return on_each(lambda x: x.astype(dtype), total.each(fn, [x for (x,) in groups], local=local))
        rows = zip(groups, *local, strict=True)
        return [total(lambda x, scalars=scalars: fn(x, *scalars), xs).astype(dtype) for xs, *scalars in rows]

    return _in_range(sums, least_norm([sum(map(total.size, xs)) for xs in groups], dtype))


def _in_range(sums: Callable[..., Numbers], least: np.ndarray) -> Numbers:
    """Norms from sums of a function of what is squared, taken again with scales where one of them is out of range."""
    # The maximum changes nothing; without it, the root of the sum of one square may be taken for its modulus.
    norms = on_each(lambda square: jnp.sqrt(jnp.maximum(square, -1)), sums(_square))

    def again(carry: tuple[jax.Array, Numbers]) -> tuple[jax.Array, Numbers]:
        wrong, norms = carry  # all depends on it: what does not, a compiler would move out of the loop
        scales = on_each(scale_of, norms, [*least] if isinstance(norms, list) else jnp.asarray(least))
        return jnp.zeros_like(wrong), on_each(_norm_of, sums(scaled_sq, scales), scales)

    # A loop of one turn and not a branch, of which vmap would take both sides always.
    wrong = jnp.any(scale_of(stacked(norms), jnp.asarray(least)) != 1)
    return jax.lax.while_loop(lambda carry: carry[0], again, (wrong, norms))[1]


def _square(x: jax.Array) -> jax.Array:
    """|x|² and no more: beside a constant, XLA's sums on the CPU make an array of the constant."""
    return jnp.square(x.real) + jnp.square(x.imag) if is_complex(x.dtype) else jnp.square(x)


def norm_of_norms(norms: jax.Array) -> jax.Array:
    """The norm of all from the norms of each: by the largest, so that no square overflows."""
    largest = jnp.max(norms, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return scale * jnp.sqrt(jnp.sum(jnp.square(norms / scale)))


def least_norm(sizes: Any, dtype: jnp.dtype) -> np.ndarray:
    """The least norm of so many numbers that has its digits: each square below tiny is subnormal or gone."""
    info = jnp.finfo(dtype)
    return np.sqrt(np.asarray(sizes) * (float(info.tiny) / float(info.eps))).astype(dtype)


# Traced once for all numbers of a list.
@functools.partial(jax.jit, inline=True)
def scale_of(norm: jax.Array, least: jax.Array) -> jax.Array:
    """The power of two to take arrays by before they are squared; 1 where the sum of the squares was in range."""
    info = jnp.finfo(norm.dtype)
    larger, smaller = np.array([2.0 ** (info.maxexp // 2 - 1), 2.0 ** -int(0.62 * info.maxexp)], norm.dtype)
    wrong = (norm >= np.sqrt(info.max)) | (norm < least)
    return jnp.where(wrong, jnp.where(norm < 1, larger, smaller), jnp.ones_like(norm))


@functools.partial(jax.jit, inline=True)
def _norm_of(square: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sqrt(square) / scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 2))
@functools.partial(jax.jit, static_argnums=(0, 2))
def _norms_of(fns: tuple[Callable[..., jax.Array], ...], rows: list[list[jax.Array]], total: SumOver) -> list[Numbers]:
    dtype = real_dtype(widest(*(jax.eval_shape(fn, *rows[0]).dtype for fn in fns)))
    k, n, columns = len(rows[0]), len(rows), [*zip(*rows, strict=True)]
    starts = range(0, n * len(fns), n)

    def sums(of: Callable[..., jax.Array], *local: Numbers) -> Numbers:
        each: list[jax.Array] = []
        for i, fn in zip(starts, fns, strict=True):
            # Scales among the columns: what does not depend on them a compiler would compute ahead, as an array.
            scales = [[*x[i : i + n]] for x in local]
            each += total.each(lambda *xs, fn=fn: of(fn(*xs[:k]), *xs[k:]), *columns, *scales)
        return [x.astype(dtype) for x in each]

    norms = _in_range(sums, least_norm([total.size(xs[0]) for xs in rows] * len(fns), dtype))
    return [norms[i : i + n] for i in starts]


@_norms_of.defjvp
def _(fns: Any, total: SumOver, primals: Any, tangents: Any) -> tuple[list[Numbers], list[Numbers]]:
    (rows,), (along,) = primals, tangents
    pairs = [[jax.jvp(fn, tuple(xs), tuple(dxs)) for xs, dxs in zip(rows, along, strict=True)] for fn in fns]
    of_terms = lambda terms: [norms([[x] for x in xs], total) for xs in terms]  # noqa: E731
    terms, tangents = ([[pair[of] for pair in row] for row in pairs] for of in (0, 1))
    return jax.jvp(of_terms, (terms,), (tangents,))


@_l2_norms.defjvp
def _(
    total: SumOver, primals: tuple[list[list[jax.Array]]], tangents: tuple[list[list[jax.Array]]]
) -> tuple[Numbers, Numbers]:
    (groups,), (tangent,) = primals, tangents
    norms = _l2_norms(groups, total)
    along = [
        total.of_shards(
            [
                jnp.sum((safe_divide(x, norm.astype(x.dtype)).conj() * dx).real).astype(norm.dtype)
                for x, dx in zip(xs, dxs, strict=True)
            ]
        ).astype(norm.dtype)
        for norm, xs, dxs in zip(norms, groups, tangent, strict=True)
    ]
    return norms, along if isinstance(norms, list) else jnp.stack(along)
