"""The outputs of a pass one after another, each in its place, in XLA on one CPU.

XLA makes one loop on a CPU for each array that is written. An array that one loop overwrites and another reads it
copies first, and what takes long and several need it writes out: arrays of the size of the leaf, in memory that each
step asks for anew, which can take longer than all the rest. Here each output is computed from what is in memory when
its turn comes, in an order in which as little as possible is read that was overwritten.

A compiler knows no turns, but what reads an array comes after it. So each output depends on the one before, by a
condition that never holds, which a compiler cannot know: that a number is below and above 0.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradtx._core.dataflow import never
from gradtx._core.numerics import has_few_bits
from gradtx._engine.local import Local, alone, is_worthwhile, traced
from gradtx.native._lowering import callee
from gradtx.native._program import aval_of

LEAST = 2**16
"""The elements from which on a leaf is worth it: each turn is a few operations more to compile."""

MOST = 6
"""The outputs up to which all orders are tried."""

COPY = 3
"""The price of a copy, in readings of an array: it is read, and written, in memory that was asked for."""


@dataclass(frozen=True, eq=False)
class Turns(Local):
    """A function of a leaf's arrays, all of one shape, and of scalars.

    Attributes:
        jaxpr: the function.
        order: its outputs, by position, in the order of their turns; not those that stay as they are.
        apart: those that have an operation in common with one before, and do it again.
        fused: those that XLA would compute again for each that reads them.
    """

    jaxpr: core.Jaxpr
    order: tuple[int, ...]
    apart: frozenset[int]
    fused: frozenset[int]

    def plain(self, *operands: jax.Array) -> list[jax.Array]:
        """The outputs, as a compiler likes it best."""
        return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, ()))(*operands)

    def avals(self, *operands: Any) -> list[Any]:
        del operands
        return [aval_of(var) for var in self.jaxpr.outvars]

    def local(self, *operands: jax.Array) -> list[jax.Array]:
        """The outputs one after another."""
        known: dict[Any, jax.Array] = dict(zip(self.jaxpr.invars, alone(operands), strict=True))
        outvars: Sequence[Any] = self.jaxpr.outvars
        outputs = {k: known[var] for k, var in enumerate(outvars) if k not in self.order}
        last: Any = None
        for k in self.order:
            var: Any = outvars[k]
            eqns, needs = _between(self.jaxpr, var, known)
            arrays = [x for x in needs if x in known and known[x].ndim]
            values = dict(known)
            if k in self.apart:
                values |= {x: _unless(never(_first(known[last])), known[x]) for x in arrays}
            output = _evaluated(eqns, values)[var]
            # Both conditions are of each element: what ends with an operation of two arrays is not computed again.
            if last is not None and last not in needs and arrays:
                output = _unless(never(_first(known[last])) & (known[arrays[0]] < 0), output)
            elif k in self.fused and arrays:
                output = _unless(never(known[arrays[0]]), output)
            outputs[k] = known[var] = output
            last = var
        return [outputs[k] for k in range(len(outputs))]


def _first(x: jax.Array) -> jax.Array:
    """The first element of an array."""
    return jax.lax.squeeze(jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim), range(x.ndim))


def _unless(condition: jax.Array, x: jax.Array) -> jax.Array:
    """An array, and 0 where a condition holds."""
    return jnp.where(condition, jnp.zeros((), x.dtype), x)


def _between(jaxpr: core.Jaxpr, of: Any, known: Container[core.Var]) -> tuple[list[core.JaxprEqn], list[core.Var]]:
    """The equations from what is known to a variable, and the variables in them."""
    needs, eqns = {of: None}, []
    for eqn in reversed(jaxpr.eqns):
        if any(var in needs and var not in known for var in eqn.outvars):
            eqns.append(eqn)
            needs |= dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
    return eqns[::-1], [*needs]


def _evaluated(eqns: Sequence[core.JaxprEqn], known: Mapping[core.Var, jax.Array]) -> dict[core.Var, jax.Array]:
    """What is known, and what the equations make of it."""
    values = dict(known)

    def read(atom: core.Var | core.Literal) -> jax.Array:
        return jnp.asarray(atom.val, aval_of(atom).dtype) if isinstance(atom, core.Literal) else values[atom]

    for eqn in eqns:
        inputs = [*map(read, eqn.invars)]
        if (inner := callee(eqn)) is not None:
            results = core.jaxpr_as_fun(inner)(*inputs)
        else:
            results = eqn.primitive.bind(*inputs, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        values |= {var: x for var, x in zip(eqn.outvars, results, strict=True) if var not in known}
    return values


# -- The order --------------------------------------------------------------------------------------------------------


def _planned(jaxpr: core.Jaxpr, places: Mapping[int, int]) -> Turns | None:
    """The turns of a function; None where XLA has nothing to copy.

    Args:
        jaxpr: the function.
        places: by the positions of operands, those of the outputs that overwrite them.
    """
    outvars: Sequence[Any] = jaxpr.outvars
    if any(isinstance(var, core.Literal) for var in outvars):
        return None
    overwritten = {i: k for i, k in places.items() if outvars[k] is not jaxpr.invars[i]}
    moving = frozenset(range(len(outvars))) - {k for i, k in places.items() if i not in overwritten}
    fused = frozenset(k for k in moving if _is_fused(jaxpr, outvars[k]))
    read_by = {k: _reads(jaxpr, k, moving - fused - {k})[0] for k in moving}
    copied = any(i in read_by[k] for i, j in overwritten.items() for k in moving - {j})
    if not copied or len(moving) > MOST:
        return None
    order = _cheapest(jaxpr, overwritten, moving)
    known: set[Any] = {*jaxpr.invars}
    apart, computed = set(), set()
    for k in order:
        arrays = {var for eqn in _between(jaxpr, outvars[k], known)[0] for var in eqn.outvars if aval_of(var).shape}
        apart |= {k} if arrays & computed else set()
        computed |= arrays
        known.add(outvars[k])
    return Turns(jaxpr, order, frozenset(apart), fused)


def _reads(jaxpr: core.Jaxpr, k: int, done: frozenset[int]) -> tuple[set[int], int]:
    """The arrays that an output reads once others are there, and the number of equations.

    The arrays are positions of operands, and behind them of outputs.
    """
    known = {var: i for i, var in enumerate(jaxpr.invars) if aval_of(var).shape}
    known |= {jaxpr.outvars[j]: len(jaxpr.invars) + j for j in done}
    eqns, needs = _between(jaxpr, jaxpr.outvars[k], known)
    return {known[var] for var in needs if var in known}, len(eqns)


def _cheapest(jaxpr: core.Jaxpr, places: Mapping[int, int], outputs: frozenset[int]) -> tuple[int, ...]:
    """The order of outputs in which they read and copy least."""
    overwrites = {k: i for i, k in places.items()}

    @functools.cache
    def rest(done: frozenset[int]) -> tuple[int, int, tuple[int, ...]]:
        """The price of those that are not there yet, their equations, and their order."""
        gone = {overwrites[k] for k in done if k in overwrites}

        def first(k: int) -> tuple[int, int, tuple[int, ...]]:
            reads, eqns = _reads(jaxpr, k, done)
            price, others, order = rest(done | {k})
            return price + len(reads) + COPY * len(reads & gone), others + eqns, (k, *order)

        return min(map(first, outputs - done), default=(0, 0, ()))

    return rest(frozenset())[2]


def _is_fused(jaxpr: core.Jaxpr, var: Any) -> bool:
    """True for what ends with an operation of one array: XLA fuses it into every loop that reads it."""
    return any(sum(bool(aval_of(atom).shape) for atom in eqn.invars) < 2 for eqn in jaxpr.eqns if var in eqn.outvars)


# -- Of leaves --------------------------------------------------------------------------------------------------------


def in_turn(fn: Any, operands: Sequence[jax.Array], places: Mapping[int, int]) -> list[jax.Array] | None:
    """The outputs of a function of a leaf's arrays and of scalars, one after another.

    None where that is of no use: where XLA has nothing to copy, of small leaves and of shards, on other devices than a
    CPU, outside of ``jit``.

    Args:
        fn: the function.
        operands: arrays and scalars.
        places: by the positions of operands, those of the outputs that may overwrite them.
    """
    if not is_worthwhile(operands, LEAST):
        return None
    avals = tuple(map(jax.typeof, operands))
    of = _turns(fn, avals, tuple(places.items()), jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    return None if of is None else of(*operands)


@functools.lru_cache(maxsize=256)
def _turns(fn: Any, avals: tuple[Any, ...], places: tuple[tuple[int, int], ...], x64: bool) -> Turns | None:
    """One for all leaves of one kind."""
    del x64  # which a trace depends on
    closed = traced(fn, avals)
    return None if closed.consts else turns_of(closed.jaxpr, dict(places))


def turns_of(jaxpr: core.Jaxpr, places: Mapping[int, int]) -> Turns | None:
    """The turns of a function, as ``in_turn`` takes it; None where there is nothing to copy, and of codes."""
    avals = [aval_of(var) for var in (*jaxpr.invars, *jaxpr.outvars)]
    arrays = [aval for aval in avals if aval.shape]
    if len(jaxpr.outvars) < 2 or any(not _is_plain(aval, arrays[0].shape) for aval in arrays):
        return None
    return _planned(jaxpr, places)


def _is_plain(aval: Any, shape: tuple[int, ...]) -> bool:
    """True for real numbers, and not for codes of such."""
    return aval.shape == shape and jnp.issubdtype(aval.dtype, jnp.floating) and not has_few_bits(aval.dtype)
