"""Numbers that are taken in a pass, in XLA on one CPU: block by block, in the cache.

XLA's sums on a CPU take arrays, and products, sums and differences of such. What is computed otherwise it writes out
first, an array of the size of the leaf for each sum, in memory that each step asks for anew: several times what the
step takes without. Here a loop adds up the terms of one block after another, and when it has ended the pass that writes
begins, in the memory that the loop read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradtx._core.dataflow import never
from gradtx._core.dtypes import promoted
from gradtx._core.numerics import is_complex, least_norm, reductions, scale_of, scaled_sq
from gradtx._engine.local import Local, is_worthwhile
from gradtx._engine.turns import Turns, turns_of
from gradtx.native._lowering import SAME_ELEMENTS, SAME_VALUE, callee, lowered
from gradtx.native._program import Unsupported, aval_of

PART = 2**15
"""Elements of an array that are added to the sums at once: with those of a few others they fit into a core's cache."""

PARTS = 4
"""The parts of a block: all are added before the sums are written. A block is large enough to be shared by cores."""

LEAST = 2**18
"""The elements from which on a leaf takes its numbers in a loop."""

ADDED_UP = {"add", "sub", "mul", "neg", "abs"}
"""The operations on arrays that XLA's sums do by themselves."""


@dataclass(frozen=True, eq=False)
class Observed(Local):
    """An elementwise function of the arrays of a leaf, and of scalars, of which numbers are taken.

    Attributes:
        jaxpr: the function.
        reduces: how its last outputs are reduced: "sum" or "norm".
        turns: how the others are written, if not all at once.
    """

    jaxpr: core.Jaxpr
    reduces: tuple[str, ...]
    turns: Turns | None

    @property
    def written(self) -> int:
        """The number of outputs that are not reduced."""
        return len(self.jaxpr.outvars) - len(self.reduces)

    def plain(self, *operands: jax.Array) -> list[jax.Array]:
        """The outputs and the numbers, with what is reduced as arrays."""
        results = self._function(*operands)
        terms = [[wide(x)] for x in results[self.written :]]
        return [*results[: self.written], *(number for (number,) in reductions(self.reduces, terms))]

    def local(self, *operands: jax.Array) -> list[jax.Array]:
        """The same of a leaf that is all on one device, without such arrays."""
        if self.is_added_up:
            results = self._function(*operands)
            return [*results[: self.written], *(jnp.sum(wide(x)) for x in results[self.written :])]
        numbers = self._numbers(operands)
        write = self._function if self.turns is None else self.turns.local
        return [*write(*_after(numbers, operands))[: self.written], *numbers]

    @functools.cached_property
    def is_added_up(self) -> bool:
        """True if XLA needs no such arrays: of one that is written, and of sums that do it all by themselves."""
        if self.written != 1 or "norm" in self.reduces:
            return False
        needed: set[Any] = {*self.jaxpr.outvars[self.written :]}
        for eqn in reversed(self.jaxpr.eqns):
            if not needed.isdisjoint(eqn.outvars):
                needed |= {atom for atom in eqn.invars if not isinstance(atom, core.Literal)}
                if eqn.primitive.name not in ADDED_UP and any(aval_of(atom).shape for atom in eqn.invars):
                    return False
        return True

    def terms(self, *operands: jax.Array, shape: tuple[int, ...] | None = None) -> list[jax.Array]:
        """The terms as arrays; of others than it was traced for, of this shape."""
        closed = core.ClosedJaxpr(self.jaxpr, ())
        results = self._function(*operands) if shape is None else evaluated(closed, operands, shape)
        return [*map(wide, results[self.written :])]

    def _function(self, *operands: jax.Array) -> list[jax.Array]:
        return core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, ()))(*operands)

    def _numbers(self, operands: Sequence[jax.Array]) -> list[jax.Array]:
        """The numbers: norms with scales of 1, and again with others if one is out of range."""
        normed = [k for k, how in enumerate(self.reduces) if how == "norm"]
        sums = functools.partial(self._sums, operands)
        if not normed:
            return sums([None] * len(self.reduces))
        like = jax.eval_shape(lambda: sums([1.0 if k in normed else None for k in range(len(self.reduces))]))
        least = {k: least_norm(operands[0].size, like[k].dtype) for k in normed}

        def turn(carry: tuple[jax.Array, dict[int, jax.Array], list[jax.Array]]) -> Any:
            turns, scales, _ = carry
            numbers = sums([scales.get(k) for k in range(len(self.reduces))])
            for k in normed:
                numbers[k] = jnp.sqrt(numbers[k]) / scales[k]
            return turns + 1, {k: scale_of(numbers[k], least[k]) for k in normed}, numbers

        def goes_on(carry: tuple[jax.Array, dict[int, jax.Array], list[jax.Array]]) -> jax.Array:
            turns, scales, _ = carry
            wrong = [scale != 1 for scale in scales.values()]
            return (turns == 0) | ((turns == 1) & functools.reduce(jnp.logical_or, wrong, jnp.array(False)))

        start = {k: jnp.ones((), like[k].dtype) for k in normed}
        return jax.lax.while_loop(goes_on, turn, (0, start, [jnp.zeros((), x.dtype) for x in like]))[2]

    def _sums(self, operands: Sequence[jax.Array], scales: Sequence[Any]) -> list[jax.Array]:
        """The sums of the terms, or of their squares, of the terms times a scale, where there is one."""
        flat = [x.reshape(-1) if x.ndim else x for x in operands]
        size = flat[0].size

        def terms(start: Any) -> list[jax.Array]:
            own = [_part(x, start) if x.ndim else x for x in flat]
            found = zip(self.terms(*own, shape=(PART,)), scales, strict=True)
            squared = [x if scale is None else scaled_sq(x, scale) for x, scale in found]
            if size % (PART * PARTS) == 0:
                return _paired(squared)
            fresh = jnp.arange(PART) >= start - (size - PART)  # the last part begins in the one before it
            return _paired([jnp.where(fresh, x, 0) for x in squared])

        def added(i: Any, sums: list[jax.Array]) -> list[jax.Array]:
            for k in range(PARTS):
                sums = [*map(jnp.add, sums, terms((i * PARTS + k) * PART))]
            return sums

        start = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(lambda: terms(0))]
        sums = jax.lax.fori_loop(0, -(-size // (PART * PARTS)), added, start)
        return [jnp.sum(x) for x in _unpaired(sums)]


def _paired(terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Two terms of one dtype as one complex one: XLA computes one array in one loop, and nothing in it twice."""
    pairs = [terms[k : k + 2] for k in range(0, len(terms), 2)]
    alike = [len(pair) == 2 and pair[0].dtype == pair[1].dtype for pair in pairs]
    return [x for pair, one in zip(pairs, alike, strict=True) for x in ([jax.lax.complex(*pair)] if one else pair)]


def _unpaired(sums: Sequence[jax.Array]) -> list[jax.Array]:
    return [part for x in sums for part in ((x.real, x.imag) if is_complex(x.dtype) else (x,))]


def wide(x: jax.Array) -> jax.Array:
    """An array in float32, or in its own dtype if that is wider."""
    return x.astype(promoted(jnp.float32, x.dtype))


def evaluated(closed: core.ClosedJaxpr, operands: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """An elementwise function of arrays of this shape: parts of those that it was traced for, or several at once."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *operands), strict=True))

    def read(atom: Any) -> Any:
        return jnp.asarray(atom.val, aval_of(atom).dtype) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [*map(read, eqn.invars)]
        if (inner := callee(eqn)) is not None:
            results = evaluated(inner, inputs, shape)
        elif name in SAME_VALUE | SAME_ELEMENTS:
            results = inputs[:1]
        else:
            if any(x.ndim for x in inputs):
                inputs = [jnp.broadcast_to(x, shape) for x in inputs]
            results = eqn.primitive.bind(*inputs, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        values |= zip(eqn.outvars, results, strict=True)
    return [jnp.broadcast_to(read(atom), shape) for atom in jaxpr.outvars]


def _after(numbers: Sequence[jax.Array], operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The operands, in which nobody can write before the numbers are known: 0 where what never holds does.

    Of narrow ones, which XLA would write out for it, only if there are no others that what is written depends on.
    """
    false = never(sum(numbers[1:], start=numbers[0]))
    least = 1 if all(x.dtype.itemsize <= 2 for x in operands if x.ndim) else 4
    held = [x.ndim > 0 and x.dtype.itemsize >= least for x in operands]
    return [jnp.where(false, jnp.zeros((), x.dtype), x) if of else x for x, of in zip(operands, held, strict=True)]


def _part(x: jax.Array, start: Any) -> jax.Array:
    """The elements from there on. Of a narrow array they are cut out as bits: else XLA widens it whole before."""
    if x.dtype.itemsize > 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return jax.lax.dynamic_slice(x, (start,), (PART,))
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint8)
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_slice(bits, (start,), (PART,)), x.dtype)


def observed(
    fn: Callable[..., Sequence[jax.Array]],
    operands: Sequence[jax.Array],
    reduces: Sequence[str],
    places: Mapping[int, int],
) -> list[jax.Array] | None:
    """The outputs of a function of a leaf's arrays and of scalars, and numbers of the last ones, block by block.

    None where that is of no use: of small leaves, of shards, on other devices than a CPU, outside of ``jit``; and of
    functions of which it is not sure that they map each element by itself. ``places``: see ``in_turn``.
    """
    if not is_worthwhile(operands, LEAST):
        return None
    of = observation(fn, operands, reduces, places)
    return None if of is None else of(*operands)


def observation(
    fn: Callable[..., Sequence[jax.Array]],
    operands: Sequence[jax.Array],
    reduces: Sequence[str],
    places: Mapping[int, int] | None = None,
) -> Observed | None:
    """One for all leaves of one kind: a function that is not elementwise for sure has none."""
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    return _observation(fn, tuple(map(jax.typeof, operands)), tuple(reduces), tuple((places or {}).items()), x64)


@functools.lru_cache(maxsize=256)
def _observation(
    fn: Any, avals: tuple[Any, ...], reduces: tuple[str, ...], places: tuple[tuple[int, int], ...], x64: bool
) -> Observed | None:
    del x64  # which a trace depends on
    closed = jax.make_jaxpr(fn)(*avals)
    try:
        lowered(closed.jaxpr, sum(x.ndim > 0 for x in avals))
    except Unsupported:
        return None
    written = closed.jaxpr.replace(outvars=closed.jaxpr.outvars[: len(closed.jaxpr.outvars) - len(reduces)])
    turns = turns_of(written, dict(places)) if places else None
    return None if closed.consts else Observed(closed.jaxpr, reduces, turns)
