"""The primitive that stands for a call of the kernel, or for its reference, until it is known where it runs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from gradtx._core.control import either
from gradtx._core.dtypes import promoted
from gradtx._core.numerics import SumOver, reductions, stacked
from gradtx.native import _library
from gradtx.native._program import Program, Reduce, aval_of
from gradtx.native._views import element, join, split

LEAVES_PER_CALL = 64
"""16 to 128 compile fastest, and are enough that what a call costs is spread; with thousands XLA takes a minute."""


@dataclass(frozen=True)
class Call:
    """A function over leaves that the kernel has a program for.

    Operands are a flag, if there is one, then the arrays of all leaves, then vectors of one scalar for each leaf, then
    for each chunk its flat arrays, in which one position of all its leaves stands, then the scalars that are the same
    for all.
    Results are the outputs of each leaf, then for each chunk its flat ones, then for each reduction a vector of one
    number for each leaf. Where the flag is false nothing is computed: an output that is the same memory as an array is
    that array, and all other results are 0. Two calls are equal if they compute the same; their derivatives are taken
    from ``jaxprs`` before that matters.

    Attributes:
        program: the instructions for each leaf.
        chunks: the number of leaves that go together in one call of the kernel.
        arrays: the number of arrays of a leaf, of its own and in flat ones.
        local: the number of scalars that each leaf has of its own.
        jaxprs: per leaf, the function itself; its constants are the last of the shared scalars.
        flat: the positions, among the arrays of a leaf, of those that are views of flat ones.
        aliases: (array, output) that are the same memory. The outputs of flat arrays are views of flat ones too.
        reduces: how the last outputs of the function are reduced over the elements of a leaf, and not written.
        flagged: if there is a flag.
    """

    program: Program
    chunks: tuple[int, ...]
    arrays: int
    local: int
    jaxprs: tuple[core.Jaxpr, ...] = field(compare=False)
    flat: tuple[int, ...]
    aliases: tuple[tuple[int, int], ...]
    reduces: tuple[Reduce, ...]
    flagged: bool = False

    @property
    def outputs(self) -> int:
        """The number of outputs of a leaf that are written, of its own and in flat ones."""
        return len(self.jaxprs[0].outvars) - len(self.reduces)

    @property
    def flat_outputs(self) -> tuple[int, ...]:
        """The positions, among the outputs of a leaf, of those that are views of flat ones."""
        return tuple(dict(self.aliases)[array] for array in self.flat)

    def avals(self, *operands: Any) -> Sequence[Any]:
        """The results' abstract values, given the operands'."""
        rows = [[aval_of(var) for var in jaxpr.outvars] for jaxpr in self.jaxprs]
        flat = [x for columns in self._split(operands[self.flagged :])[2] for x in columns]
        return [*self._own(rows), *flat, *(self._vector(x, len(rows)) for x in rows[0][self.outputs :])]

    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        """The results in JAX."""
        if not self.flagged:
            return self._computed(operands)
        flag, *others = operands
        avals = self.avals(*map(jax.typeof, operands))
        return either(flag, lambda: self._computed(others), lambda: self._left(others, avals))

    def _computed(self, operands: Sequence[jax.Array]) -> list[jax.Array]:
        rows, vectors = evaluated(self._functions(operands), self.reduces)
        flat = [
            join([leaf[output] for leaf in chunk]) for chunk in self._in_chunks(rows) for output in self.flat_outputs
        ]
        return [*self._own(rows), *flat, *vectors]

    def _left(self, operands: Sequence[jax.Array], avals: Sequence[Any]) -> list[jax.Array]:
        """The results, of these abstract values, where the flag is false."""
        arrays, _, flat, _ = self._split(operands)
        own = [i for i in range(self.arrays) if i not in self.flat]
        kept = {output: own.index(array) for array, output in self.aliases if array in own}
        rows = [[row[kept[o]] if o in kept else None for o in range(self.outputs)] for row in arrays]
        results = [*self._own(rows), *itertools.chain(*flat), *[None] * len(self.reduces)]
        return [jnp.zeros(aval.shape, aval.dtype) if x is None else x for x, aval in zip(results, avals, strict=True)]

    def native(self, *operands: jax.Array) -> list[jax.Array]:
        """The results by the kernel, where that can run."""
        flag, others = (operands[0], operands[1:]) if self.flagged else (jnp.array(True), operands)
        own, flat, vectors = [], [], []
        arrays, outputs = self.arrays - len(self.flat), self.outputs - len(self.flat)
        inputs_of_own = [i for i in range(self.arrays) if i not in self.flat]
        outputs_of_own = [i for i in range(self.outputs) if i not in self.flat_outputs]
        aliases = [(inputs_of_own.index(a), outputs_of_own.index(o)) for a, o in self.aliases if a not in self.flat]
        avals = self.avals(*map(jax.typeof, operands))
        for leaves, call_operands in zip(self.chunks, self._calls(others), strict=True):
            in_place = {1 + i * arrays + a: i * outputs + o for i in range(leaves) for a, o in aliases}
            first = 1 + leaves * arrays
            in_place |= {first + j: leaves * outputs + j for j in range(len(self.flat))}
            call = jax.ffi.ffi_call(
                _library.TARGET,
                [
                    *avals[len(own) : len(own) + leaves * outputs],
                    *map(jax.typeof, call_operands[first : first + len(self.flat)]),
                    *(self._vector(x, leaves) for x in avals[len(avals) - len(self.reduces) :]),
                ],
                input_output_aliases=in_place,
            )
            found = call(*call_operands, flag, **self._attributes())
            own += found[: leaves * outputs]
            flat += found[leaves * outputs : len(found) - len(self.reduces)]
            vectors.append(found[len(found) - len(self.reduces) :])
        return [*own, *flat, *map(joined, zip(*vectors, strict=True))]

    def _own(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The outputs that are not views of flat ones, of all leaves."""
        return [x for row in rows for o, x in enumerate(row[: self.outputs]) if o not in self.flat_outputs]

    def _vector(self, aval: Any, leaves: int) -> Any:
        """The abstract value of a vector of one such number for each leaf."""
        return aval.update(shape=(leaves,), weak_type=False, sharding=aval.sharding.update(spec=PartitionSpec(None)))

    def _split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], Sequence[Any]]:
        """Arrays per leaf, vectors of local scalars, flat arrays per chunk, shared scalars."""
        leaves, own = sum(self.chunks), self.arrays - len(self.flat)
        ends = np.cumsum([leaves * own, self.local, len(self.chunks) * len(self.flat)])
        arrays, local, flat, shared = (operands[i:j] for i, j in itertools.pairwise([0, *ends, len(operands)]))
        return _rows(arrays, leaves), list(local), _rows(flat, len(self.chunks)), shared

    def _functions(self, operands: Sequence[jax.Array]) -> Iterator[Callable[[], Sequence[jax.Array]]]:
        """Per leaf, the function of its operands."""
        arrays, local, flat, shared = self._split(operands)
        whole: list[list[jax.Array]] = []
        for chunk, columns in zip(self._in_chunks(arrays), flat, strict=True):
            views = [split(x, [own[0].shape for own in chunk]) for x in columns]
            for k, own in enumerate(chunk):
                whole.append(list(own))
                for position, column in zip(self.flat, views, strict=True):
                    whole[-1].insert(position, column[k].array())
        for i, (jaxpr, own) in enumerate(zip(self.jaxprs, whole, strict=True)):
            count = len(shared) - len(jaxpr.constvars)
            function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, shared[count:]))
            yield functools.partial(function, *own, *(element(x, i) for x in local), *shared[:count])

    def _in_chunks(self, rows: Any) -> Iterable[Any]:
        """Rows of one for each leaf, chunk by chunk."""
        ends = itertools.accumulate(self.chunks, initial=0)
        return (rows[start:stop] for start, stop in itertools.pairwise(ends))

    def _calls(self, operands: Sequence[jax.Array]) -> Any:
        """For each call of the kernel its operands: coefficients, arrays of its leaves, flat ones."""
        arrays, local, flat, shared = self._split(operands)
        dtype = jnp.float64 if self.program.wide else jnp.float32

        def coefficients(*scalars: jax.Array) -> list[jax.Array]:
            return [value.astype(dtype) for value in self.program.scalars(*scalars, *shared)]

        if self.local and self.program.coefficients:
            tables = self._in_chunks(jax.vmap(lambda *scalars: jnp.stack(coefficients(*scalars)))(*local))
        else:
            tables = [_row(coefficients(*(x[0] for x in local)), dtype)[None]] * len(self.chunks)
        for rows, chunk, columns in zip(tables, self._in_chunks(arrays), flat, strict=True):
            yield [rows, *(x for leaf in chunk for x in leaf), *columns]

    def _attributes(self) -> dict[str, Any]:
        return {
            "inputs": np.int64(self.arrays),
            "flat_inputs": np.asarray(self.flat, np.int64),
            "outputs": np.int64(self.outputs),
            "flat_outputs": np.asarray(self.flat_outputs, np.int64),
            "reductions": np.int64(len(self.reduces)),
            "code": np.asarray(self.program.code, np.int32),
            "constants": np.asarray(self.program.constants, np.float64),
            "temporaries": np.int64(self.program.temporaries),
            "scales": np.asarray(self.program.scales, np.int64),
        }


def _row(numbers: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Numbers as a vector, which XLA computes in one loop; of numbers that are stacked it makes a loop of each.

    So it does of a quotient or a root that is spread over a vector, but not of one that is padded to a vector.
    """
    last, zero = len(numbers) - 1, jnp.zeros((), dtype)
    places, row = jnp.arange(last + 1), jnp.zeros(last + 1, dtype)
    for place, number in enumerate(numbers):
        row = jnp.where(places == place, jax.lax.pad(number[None], zero, [(place, last - place, 0)]), row)
    return row


class _LocalSums(SumOver):
    """Sums of one shard."""

    def of_shards(self, numbers: Sequence[jax.Array]) -> jax.Array:
        return functools.reduce(jnp.add, numbers) if numbers else jnp.zeros((), jnp.float32)

    def size(self, x: jax.Array) -> int:
        return x.size

    def each_of_shards(self, numbers: Sequence[jax.Array]) -> list[jax.Array]:
        return list(numbers)


_LOCAL_SUMS = _LocalSums()


def evaluated(
    functions: Iterable[Callable[[], Sequence[jax.Array]]], reduces: Sequence[Reduce]
) -> tuple[list[list[jax.Array]], list[jax.Array]]:
    """Per leaf the outputs of its function in JAX, and vectors of what its last ones are reduced to, in one shard."""
    rows = [list(function()) for function in functions]
    columns = [[row.pop() for row in rows] for _ in reduces][::-1]
    return rows, [stacked(numbers) for numbers in reductions(reduces, columns, _LOCAL_SUMS)]


def joined(vectors: Sequence[jax.Array]) -> jax.Array:
    """Vectors one after another, in the widest of their dtypes."""
    wide = promoted(*(x.dtype for x in vectors))
    return jnp.concatenate([x.astype(wide) for x in vectors]) if len(vectors) > 1 else vectors[0]


def _rows(values: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    width = len(values) // rows
    return [values[i * width : (i + 1) * width] for i in range(rows)]


# -- The primitive ----------------------------------------------------------------------------------------------------

call_p = core.Primitive("elementwise_leaves")
call_p.multiple_results = True


@functools.partial(jax.jit, static_argnames="call")
def _run(*operands: jax.Array, call: Call) -> list[jax.Array]:
    return call_p.bind(*operands, call=call)


def _run_eagerly(*operands: jax.Array, call: Call) -> list[jax.Array]:
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue] - made at run time
        return call.reference(*operands)
    return _run(*operands, call=call)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> tuple[Any, Any]:
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def reference(*some: jax.Array) -> list[jax.Array]:
        given = iter(some)
        return call.reference(*(next(given) if moves else x for x, moves in zip(primals, moving, strict=True)))

    def only_moving(values: Sequence[Any]) -> list[Any]:
        return [x for x, moves in zip(values, moving, strict=True) if moves]

    return jax.jvp(reference, only_moving(primals), only_moving(tangents))


def _batch(operands: Sequence[Any], axes: Sequence[Any], *, call: Call) -> tuple[Any, Any]:
    results = jax.vmap(call.reference, in_axes=tuple(axes))(*operands)
    return results, [0] * len(results)


def _lower_reference(ctx: mlir.LoweringRuleContext, *operands: Any, call: Call) -> Any:
    return mlir.lower_fun(call.reference, multiple_results=True)(ctx, *operands)


def _lower_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, call: Call) -> Any:
    if not is_local(ctx.module_context) or ctx.module_context.lowering_parameters.for_export:
        return _lower_reference(ctx, *operands, call=call)
    return mlir.lower_fun(call.native, multiple_results=True)(ctx, *operands)


def is_local(module: mlir.ModuleContext) -> bool:
    """True if what is lowered runs as it is on each device: the partitioner cannot split a call of the kernel."""
    context: Any = module.axis_context
    if isinstance(context, mlir.SPMDAxisContext):
        shape = dict(context.mesh.shape)
        return all(size == 1 or axis in context.manual_axes for axis, size in shape.items())
    return getattr(context, "num_devices", 1) == 1


call_p.def_impl(_run_eagerly)
call_p.def_abstract_eval(lambda *operands, call: call.avals(*operands))
ad.primitive_jvps[call_p] = _jvp
batching.primitive_batchers[call_p] = _batch
mlir.register_lowering(call_p, _lower_reference)
mlir.register_lowering(call_p, _lower_cpu, platform="cpu")
