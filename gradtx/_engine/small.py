"""Numbers of many small arrays, in XLA on one CPU: by few operations, since each of them takes time to compile.

A small array is added up in float64, in which no square of a float32 overflows or vanishes: what takes a second reading
elsewhere, and a loop for it, is one reading of what is in the cache. Where a vector of numbers is wanted, arrays of one
size stand together in a matrix, whose rows are added up at once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from gradtx._core.dataflow import never
from gradtx._core.mesh import is_split, varying
from gradtx._core.numerics import Numbers, SumOver, in_order, reductions, stacked
from gradtx._engine.blocks import Observed, observation
from gradtx._engine.local import Local, is_worthwhile
from gradtx.native._primitive import is_local
from gradtx.native._program import aval_of

SMALL = 2**12
"""The elements up to which an array is small: to copy it, or to add it up in float64, takes no longer than a call."""


def numbers_of(xs: Sequence[jax.Array], hows: Sequence[str], vector: bool) -> Numbers | None:
    """Each array as one number, its "sum" or its "norm", as a vector or as a list.

    None where it is of no use: without small arrays, of shards, in other dtypes than float32, on other devices than a
    CPU, outside of ``jit``.
    """
    if jax.default_backend() != "cpu" or any(x.dtype != jnp.float32 for x in xs) or varying(*xs):
        return None
    if not any(0 < x.size <= SMALL for x in xs) or any(map(is_split, xs)):
        return None
    if not any(isinstance(x, jax.core.Tracer) for x in xs):
        return None
    found = numbers_p.bind(*xs, hows=tuple(hows), vector=vector)
    return found[0] if vector else found


def reduced(hows: Sequence[str], columns: Sequence[Sequence[jax.Array]], vector: bool = True) -> list[Numbers]:
    """Each array of each column as one number, as ``reductions`` has it; ``vector``: whether as vectors."""
    repeated = [how for how, column in zip(hows, columns, strict=True) for _ in column]
    found = numbers_of([x for column in columns for x in column], repeated, vector)
    if found is None:
        return reductions(hows, columns)
    ends = np.cumsum([0, *map(len, columns)])
    return [found[i:j] for i, j in itertools.pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Alike(Local):
    """The numbers of an elementwise function of several leaves of one shape: for each term a vector.

    The leaves stand in one matrix for each operand, and what is computed is computed once, not for each leaf.

    Attributes:
        of: the function.
        rows: of each leaf the places of its operands among the distinct ones.
    """

    of: Observed
    rows: tuple[tuple[int, ...], ...]

    def avals(self, *operands: Any) -> list[Any]:
        """Vectors in float32."""
        return [_vector(operands[0], len(self.rows)) for _ in self.of.reduces]

    def plain(self, *operands: jax.Array) -> list[jax.Array]:
        """The numbers, leaf by leaf."""
        leaves = [self.of.terms(*(operands[place] for place in row)) for row in self.rows]
        return [*map(stacked, reductions(self.of.reduces, [*zip(*leaves, strict=True)]))]

    def local(self, *operands: jax.Array) -> list[jax.Array]:
        """The numbers of matrices."""
        columns = [[operands[place] for place in column] for column in zip(*self.rows, strict=True)]
        size = max(x.size for (x, *_) in columns)
        rows = [_matrix(xs) if xs[0].ndim or any(x is not xs[0] for x in xs) else xs[0] for xs in columns]
        terms = self.of.terms(*jax.lax.optimization_barrier(rows), shape=(len(self.rows), size))
        with jax.enable_x64(True):
            return [_number(how, x) for how, x in zip(self.of.reduces, terms, strict=True)]


def _matrix(xs: Sequence[jax.Array]) -> jax.Array:
    """Arrays as they are in memory as rows; numbers, which the compiler shall not compute again in it, as a column."""
    return jnp.stack([x.reshape(-1) for x in xs]) if xs[0].ndim else stacked([*xs])[:, None]


def alike(
    fn: Callable[..., Sequence[jax.Array]], rows: Sequence[Sequence[jax.Array]], reduces: Sequence[str]
) -> list[tuple[list[int], list[jax.Array]]]:
    """The numbers of small leaves, of those of one shape at once: which leaves, and for each term a vector.

    None of other leaves, and where it is of no use (see ``numbers_of``).

    Args:
        fn: a function of the operands of a leaf.
        rows: the operands of each leaf, arrays and then scalars.
        reduces: how its last outputs are reduced.
    """
    groups: dict[Any, list[int]] = {}
    for i, xs in enumerate(rows):
        shapes = {x.shape for x in xs if x.ndim}
        if len(shapes) == 1 and xs[0].ndim and 0 < xs[0].size <= SMALL and all(x.dtype == jnp.float32 for x in xs):
            if is_worthwhile(xs, 1) and not any(map(is_split, xs)):
                groups.setdefault(xs[0].shape, []).append(i)
    found: list[tuple[list[int], list[jax.Array]]] = []
    for members in groups.values():
        of = observation(fn, rows[members[0]], reduces)
        if of is None or any(aval_of(x).dtype != jnp.float32 for x in of.jaxpr.outvars[of.written :]):
            continue
        distinct = list({id(x): x for i in members for x in rows[i]}.values())
        place = {id(x): k for k, x in enumerate(distinct)}
        found.append((members, Alike(of, tuple(tuple(place[id(x)] for x in rows[i]) for i in members))(*distinct)))
    return found


def after(numbers: Sequence[jax.Array], scalars: Sequence[jax.Array]) -> list[jax.Array]:
    """Scalars that are known when numbers are, so that nobody who needs one writes before: times 1.

    A compiler does not know that it is one, and takes a smallest of several apart only where they are not in memory.
    """
    first = jax.lax.optimization_barrier(jnp.stack([x[0] for x in numbers]))
    one = jnp.min(jnp.where(never(first), 0, 1))
    return [x * one.astype(x.dtype) for x in scalars]


class SmallSums(SumOver):
    """Sums of small arrays of one shape together, and their norms by one reading."""

    def of_arrays(self, fn, *columns):
        rows = [*zip(*columns, strict=True)]
        together = alike(lambda *xs: (fn(*xs),), rows, ["sum"]) if len(rows) > 1 else []
        small = {i for members, _ in together for i in members}
        others = [row for i, row in enumerate(rows) if i not in small]
        return [*(jnp.sum(sums) for _, (sums,) in together), *super().of_arrays(fn, *zip(*others, strict=True))]

    def norms(self, xs, vector=False):
        return numbers_of(xs, ["norm"] * len(xs), vector)


def _plain(*xs: jax.Array, hows: tuple[str, ...], vector: bool) -> list[jax.Array]:
    """The numbers wherever it is."""
    numbers = _each(xs, hows)
    return [stacked(numbers)] if vector else numbers


def _each(xs: Sequence[jax.Array], hows: Sequence[str]) -> list[jax.Array]:
    kinds = [*dict.fromkeys(hows)]
    places = [[i for i, how in enumerate(hows) if how == kind] for kind in kinds]
    found = reductions(kinds, [[xs[i] for i in column] for column in places])
    by_place = dict(zip(itertools.chain(*places), itertools.chain(*found), strict=True))
    return [by_place[i] for i in range(len(xs))]


def _local(*xs: jax.Array, hows: tuple[str, ...], vector: bool) -> list[jax.Array]:
    """The numbers on one CPU, with float64 at hand."""
    small = [i for i, x in enumerate(xs) if x.size <= SMALL]
    large = [i for i, x in enumerate(xs) if x.size > SMALL]
    others = _each([xs[i] for i in large], [hows[i] for i in large]) if large else []
    if not vector:
        found = dict(zip(large, others, strict=True)) | {i: _number(hows[i], xs[i].reshape(-1)) for i in small}
        return [found[i] for i in range(len(xs))]
    alike: dict[tuple[str, int], list[int]] = {}
    for i in small:
        alike.setdefault((hows[i], xs[i].size), []).append(i)
    parts = [stacked(others)] if others else []
    for (how, _), places in alike.items():
        # A barrier: else the sums of a matrix are compiled into what gathers it, once for each array in it.
        rows = jax.lax.optimization_barrier(stacked([xs[i].reshape(-1) for i in places]))
        parts.append(_number(how, rows))
    order = [*large, *itertools.chain(*alike.values())]
    return [in_order(jnp.concatenate(parts), [int(i) for i in np.argsort(order)])]


def _number(how: str, x: jax.Array) -> jax.Array:
    """The sums or norms along the last axis."""
    wide = x.astype(jnp.float64)
    number = jnp.sqrt(jnp.sum(jnp.square(wide), -1)) if how == "norm" else jnp.sum(wide, -1)
    return number.astype(jnp.float32)


numbers_p = core.Primitive("numbers")
numbers_p.multiple_results = True


def _avals(*avals: Any, hows: tuple[str, ...], vector: bool) -> list[Any]:
    if vector:
        return [_vector(avals[0], len(hows))]
    scalar = avals[0].update(shape=(), weak_type=False, sharding=avals[0].sharding.update(spec=PartitionSpec()))
    return [scalar] * len(hows)


def _vector(like: Any, size: int) -> Any:
    return like.update(shape=(size,), weak_type=False, sharding=like.sharding.update(spec=PartitionSpec(None)))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    return jax.jvp(functools.partial(_plain, **params), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batch(operands: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    results = jax.vmap(functools.partial(_plain, **params), in_axes=tuple(axes))(*operands)
    return results, [0] * len(results)


def _lower(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
    if not is_local(ctx.module_context) or ctx.module_context.lowering_parameters.for_export:
        return _lower_plain(ctx, *operands, **params)
    with jax.enable_x64(True):
        return mlir.lower_fun(functools.partial(_local, **params), multiple_results=True)(ctx, *operands)


def _lower_plain(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
    return mlir.lower_fun(functools.partial(_plain, **params), multiple_results=True)(ctx, *operands)


numbers_p.def_impl(lambda *operands, **params: jax.jit(functools.partial(_plain, **params))(*operands))
numbers_p.def_abstract_eval(_avals)
ad.primitive_jvps[numbers_p] = _jvp
batching.primitive_batchers[numbers_p] = _batch
mlir.register_lowering(numbers_p, _lower_plain)
mlir.register_lowering(numbers_p, _lower, platform="cpu")
