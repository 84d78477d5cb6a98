"""Elementwise functions over many leaves in one pass over memory, by a compiled kernel where there is one.

A function of one array (a whole optimizer and the step it takes, say) becomes a small program, which the kernel runs
block by block in the cache, on all cores and in place. Without the kernel, on other devices, over several devices, in
derivatives and under ``vmap``, and for a function that the kernel does not know all of, the result is what JAX makes
of the function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradtx.native import _library
from gradtx.native._library import Availability
from gradtx.native._primitive import MapCall, SumCall, call_p
from gradtx.native._program import Program, Unsupported, aval_of, compile_jaxpr

__all__ = ["Availability", "available", "map_leaves", "sum_leaves", "supports"]


def available() -> Availability:
    """Whether the compiled kernel is there; as a string: which, or why not.

    >>> from gradtx import native
    >>> native.available() is native.available()
    True
    """
    return _library.load()


def map_leaves(
    fn: Callable[..., tuple[jax.Array, ...]],
    leaves: Sequence[tuple[jax.Array, ...]],
    shared: Sequence[jax.Array] = (),
    local: Sequence[tuple[jax.Array, ...]] | None = None,
    aliases: Mapping[int, int] | None = None,
) -> list[tuple[jax.Array, ...]]:
    """``[fn(*arrays, *scalars, *shared) for arrays, scalars in zip(leaves, local)]``, in one pass over each leaf.

    Args:
        fn: elementwise in the arrays; returns a tuple of arrays of the leaf's shape.
        leaves: per leaf a tuple of arrays of one shape; those at one position have one dtype in all leaves.
        shared: scalars, the same for each leaf.
        local: per leaf a tuple of scalars.
        aliases: {position of an array in the leaf's tuple: position of an output} that may be the same memory.

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
    results: list[tuple[jax.Array, ...]] = [()] * len(leaves)
    for group in _groups(fn, leaves, local, shared, aliases or {}, summed=False):
        if group.program is None:
            for i in group.members:
                results[i] = tuple(fn(*leaves[i], *local[i], *shared))
            continue
        call = MapCall(group.program, *group.sizes(leaves, local), aliases=group.aliases)
        flat = call_p.bind(*group.operands(leaves, local, shared), call=call)
        for k, i in enumerate(group.members):
            results[i] = tuple(flat[k * call.outputs : (k + 1) * call.outputs])
    return results


def sum_leaves(
    fn: Callable[..., jax.Array], leaves: Sequence[tuple[jax.Array, ...]], shared: Sequence[jax.Array] = ()
) -> jax.Array:
    """The sum of ``fn(*arrays, *shared)`` over all elements of all leaves, in the dtype that ``fn`` returns.

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
    sums = []
    for group in _groups(fn, leaves, [()] * len(leaves), shared, {}, summed=True):
        if group.program is None:
            sums += [jnp.sum(fn(*leaves[i], *shared)) for i in group.members]
        else:
            call = SumCall(group.program, *group.sizes(leaves, [()] * len(leaves)))
            sums += call_p.bind(*group.operands(leaves, [()] * len(leaves), shared), call=call)
    return sum(sums[1:], start=sums[0]) if sums else jnp.zeros((), jnp.float32)


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


class _Group:
    """Leaves with one program; None if they have none."""

    def __init__(self, program: Program | None, consts: Sequence[jax.Array], aliases: tuple[tuple[int, int], ...]):
        self.program, self.consts, self.aliases = program, consts, aliases
        self.members: list[int] = []
        self.jaxprs: list[core.Jaxpr] = []

    def sizes(self, leaves: Sequence[Any], local: Sequence[Any]) -> tuple[int, int, int, tuple[core.Jaxpr, ...]]:
        first = self.members[0]
        return len(self.members), len(leaves[first]), len(local[first]), tuple(self.jaxprs)

    def operands(self, leaves: Sequence[Any], local: Sequence[Any], shared: Sequence[Any]) -> list[Any]:
        arrays = [x for i in self.members for x in leaves[i]]
        return [*arrays, *(x for i in self.members for x in local[i]), *shared, *self.consts]


def _groups(
    fn: Callable[..., Any],
    leaves: Sequence[tuple[jax.Array, ...]],
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
        avals = tuple(jax.typeof(x) for x in (*arrays, *scalars))
        if avals not in traced:
            program, jaxpr, consts, same = None, None, [], {}
            if ops:
                closed = jax.make_jaxpr(fn)(*arrays, *scalars, *shared)
                jaxpr, consts = closed.jaxpr, closed.consts
                dtypes = [aval_of(var).dtype for var in jaxpr.outvars]
                same = {a: o for a, o in sorted(aliases.items()) if arrays[a].dtype == dtypes[o]}
                try:
                    program = compile_jaxpr(jaxpr, len(arrays), ops, same, summed)
                except Unsupported:
                    program = None
            pairs = tuple(same.items())
            key = (program, pairs, avals[len(arrays) :], *map(id, consts))
            traced[avals] = groups.setdefault(key, _Group(program, consts, pairs)), jaxpr
        group, jaxpr = traced[avals]
        group.members.append(i)
        if jaxpr is not None:
            group.jaxprs.append(jaxpr)
    return list(groups.values())
