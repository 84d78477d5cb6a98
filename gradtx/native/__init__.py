"""Elementwise functions over many leaves in one pass over memory, by a compiled kernel where there is one.

A function of one array (a whole optimizer and the step it takes, say) becomes a small program, which the kernel runs
block by block in the cache, on all cores and in place. Without the kernel, on other devices, over several devices, in
derivatives and under ``vmap``, and for a function that the kernel does not know all of, the result is what JAX makes
of the function itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradtx._mesh import sum_of, vary, varying
from gradtx.native import _library
from gradtx.native._library import Availability
from gradtx.native._parts import Part, are_all, as_array, join, split
from gradtx.native._primitive import LEAVES_PER_CALL, MapCall, SumCall, call_p
from gradtx.native._program import Program, Unsupported, aval_of, compile_jaxpr

__all__ = ["Availability", "Part", "as_array", "available", "join", "map_leaves", "split", "sum_leaves", "supports"]


def available() -> Availability:
    """Whether the compiled kernel is there; as a string: which, or why not.

    >>> from gradtx import native
    >>> native.available() is native.available()
    True
    """
    return _library.load()


def map_leaves(
    fn: Callable[..., tuple[jax.Array, ...]],
    leaves: Sequence[tuple[jax.Array | Part, ...]],
    shared: Sequence[jax.Array] = (),
    local: Sequence[tuple[jax.Array, ...]] | None = None,
    aliases: Mapping[int, int] | None = None,
) -> list[tuple[Any, ...]]:
    """``[fn(*arrays, *scalars, *shared) for arrays, scalars in zip(leaves, local)]``, in one pass over each leaf.

    Args:
        fn: elementwise in the arrays; returns a tuple of arrays of the leaf's shape.
        leaves: per leaf a tuple of arrays of one shape, the first an array and each other one an array or a ``Part`` of
            a flat one; those at one position have one dtype in all leaves.
        shared: scalars, the same for each leaf.
        local: per leaf a tuple of scalars.
        aliases: {position of an array in the leaf's tuple: position of an output} that may be the same memory.

    Leaves whose parts are all there is of some flat arrays go together, and the outputs that may have the same memory
    are parts of flat arrays too. Other parts are copied, and their outputs are arrays.

    >>> from gradtx import native
    >>> import jax.numpy as jnp
    >>> leaves = [(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])), (jnp.array(3.0), jnp.array(2.0))]
    >>> step = lambda p, g, rate: (p - rate * g,)
    >>> for (p,) in native.map_leaves(step, leaves, shared=[jnp.array(0.5)], aliases={0: 0}):
    ...     print(p)
    [0.5 2.5]
    2.0
    """
    local = [()] * len(leaves) if local is None else local
    results: list[tuple[Any, ...]] = [()] * len(leaves)
    for group in _groups(fn, leaves, local, shared, aliases or {}, summed=False):
        if group.program is None:
            for i in group.members:
                results[i] = tuple(fn(*map(as_array, leaves[i]), *local[i], *shared))
            continue
        for flat, chunks in group.together(leaves).items():
            call = MapCall(**group.call(leaves, local, flat, chunks), aliases=group.aliases)
            found = call_p.bind(*group.operands(leaves, local, shared, flat, chunks), call=call)
            flat_results = iter(found[len(found) - len(chunks) * len(flat) :])
            own = iter(found)
            for chunk in chunks:
                shapes = [jnp.shape(leaves[i][0]) for i in chunk]
                parts = {output: split(next(flat_results), shapes) for output in call.flat_outputs}
                for k, i in enumerate(chunk):
                    results[i] = tuple(parts[o][k] if o in parts else next(own) for o in range(call.outputs))
    return results


def sum_leaves(
    fn: Callable[..., jax.Array], leaves: Sequence[tuple[jax.Array, ...]], shared: Sequence[jax.Array] = ()
) -> jax.Array:
    """The sum of ``fn(*arrays, *shared)`` over all elements of all leaves, in all shards, in float32 or wider.

    The kernel adds in float64, in an order that does not depend on the number of threads.

    Args:
        fn: elementwise in the arrays; returns one array of the leaf's shape.
        leaves: per leaf a tuple of arrays of one shape; those at one position have one dtype in all leaves.
        shared: scalars, the same for each leaf.

    >>> from gradtx import native
    >>> import jax.numpy as jnp
    >>> print(native.sum_leaves(jnp.square, [(jnp.array([1.0, 2.0]),), (jnp.array(3.0),)]))
    14.0
    """
    sums, local = [], [()] * len(leaves)
    for group in _groups(fn, leaves, local, shared, {}, summed=True):
        if group.program is None:
            sums += [jnp.sum(fn(*leaves[i], *shared)) for i in group.members]
        for flat, chunks in group.together(leaves).items() if group.program else ():
            call = SumCall(**group.call(leaves, local, flat, chunks))
            sums += call_p.bind(*group.operands(leaves, local, shared, flat, chunks), call=call)
    return sum_of(sums)


def supports(fn: Callable[..., Any], avals: Sequence[Any], n_scalars: int = 0) -> str | None:
    """None if the kernel can run ``fn`` on arrays like these and float32 scalars, else the reason why not.

    >>> from gradtx import native
    >>> import jax, jax.numpy as jnp
    >>> reason = native.supports(jnp.cumsum, [jax.ShapeDtypeStruct((8,), jnp.float32)])
    >>> isinstance(reason, str)
    True
    """
    if not available():
        return str(available())
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * n_scalars
    closed = jax.make_jaxpr(fn)(*avals, *scalars)
    try:
        compile_jaxpr(closed.jaxpr, len(avals), available().ops, {})
    except Unsupported as error:
        return str(error)
    return None


Chunks = list[list[int]]
"""The leaves of each call of the kernel."""


class _Group:
    """Leaves with one program, None if they have none, whose shards differ along the same axes of a mesh."""

    def __init__(
        self,
        program: Program | None,
        consts: Sequence[jax.Array],
        aliases: tuple[tuple[int, int], ...],
        axes: tuple[str, ...],
    ):
        self.program, self.consts, self.aliases, self.axes = program, consts, aliases, axes
        self.members: list[int] = []
        self.jaxprs: dict[int, core.Jaxpr] = {}

    def together(self, leaves: Sequence[tuple[jax.Array | Part, ...]]) -> dict[tuple[int, ...], Chunks]:
        """By the positions of the parts that can stay in their flat arrays, the leaves that go together."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for i in self.members:
            parts = [(a, id(x.flat)) for a, x in enumerate(leaves[i]) if isinstance(x, Part)]
            alike.setdefault(tuple(parts), []).append(i)
        together: dict[tuple[int, ...], Chunks] = {}
        plain: list[int] = []
        for parts, members in alike.items():
            flat = tuple(a for a, _ in parts)
            if flat and all(a in dict(self.aliases) and are_all([leaves[i][a] for i in members]) for a in flat):
                together.setdefault(flat, []).append(members)
            else:
                plain += members
        if plain:
            starts = range(0, len(plain), LEAVES_PER_CALL)
            together[()] = [plain[start : start + LEAVES_PER_CALL] for start in starts]
        return together

    def call(
        self, leaves: Sequence[Any], local: Sequence[Any], flat: tuple[int, ...], chunks: Chunks
    ) -> dict[str, Any]:
        """What a ``Call`` has to know."""
        first = chunks[0][0]
        return {
            "program": self.program,
            "chunks": tuple(map(len, chunks)),
            "arrays": len(leaves[first]),
            "local": len(local[first]),
            "jaxprs": tuple(self.jaxprs[i] for i in itertools.chain(*chunks)),
            "flat": flat,
        }

    def operands(
        self, leaves: Sequence[Any], local: Sequence[Any], shared: Sequence[Any], flat: tuple[int, ...], chunks: Chunks
    ) -> list[Any]:
        """The operands of a ``Call``."""
        members = list(itertools.chain(*chunks))
        arrays = [as_array(x) for i in members for a, x in enumerate(leaves[i]) if a not in flat]
        flats = [leaves[chunk[0]][a].flat for chunk in chunks for a in flat]
        operands = [*arrays, *(x for i in members for x in local[i]), *flats, *shared, *self.consts]
        return [vary(x, self.axes) for x in operands]


def _groups(
    fn: Callable[..., Any],
    leaves: Sequence[tuple[jax.Array | Part, ...]],
    local: Sequence[tuple[jax.Array, ...]],
    shared: Sequence[jax.Array],
    aliases: Mapping[int, int],
    summed: bool,
) -> list[_Group]:
    """Leaves by what the kernel has to do for them. The function is traced once for each kind of leaf."""
    ops = available().ops
    traced: dict[Any, tuple[_Group, core.Jaxpr | None]] = {}
    groups: dict[Any, _Group] = {}
    for i, (arrays, scalars) in enumerate(zip(leaves, local, strict=True)):
        axes = varying(*(x.flat if isinstance(x, Part) else x for x in arrays), *scalars, *shared)
        first = jax.typeof(vary(arrays[0], axes))
        avals = tuple(
            first.update(dtype=x.dtype, weak_type=False) if isinstance(x, Part) else jax.typeof(vary(x, axes))
            for x in (*arrays, *scalars)
        )
        if avals not in traced:
            program, jaxpr, consts, same = None, None, [], {}
            if ops:
                closed = jax.make_jaxpr(fn)(*avals, *(vary(x, axes) for x in shared))
                jaxpr, consts = closed.jaxpr, closed.consts
                dtypes = [aval_of(var).dtype for var in jaxpr.outvars]
                same = {a: o for a, o in sorted(aliases.items()) if arrays[a].dtype == dtypes[o]}
                try:
                    program = compile_jaxpr(jaxpr, len(arrays), ops, same, summed)
                except Unsupported:
                    program = None
            pairs = tuple(same.items())
            key = (program, pairs, axes, avals[len(arrays) :], *map(id, consts))
            traced[avals] = groups.setdefault(key, _Group(program, consts, pairs, axes)), jaxpr
        group, jaxpr = traced[avals]
        group.members.append(i)
        if jaxpr is not None:
            group.jaxprs[i] = jaxpr
    return list(groups.values())
