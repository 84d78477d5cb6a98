"""The primitive that stands for a call of the kernel, or for its reference, until it is known where it runs."""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from gradtx.native import _library
from gradtx.native._parts import element, join, split
from gradtx.native._program import Program, aval_of

LEAVES_PER_CALL = 64
"""16 to 128 compile fastest, and are enough that what a call costs is spread; with thousands XLA takes a minute."""


@dataclass(frozen=True)
class Call(abc.ABC):
    """A function over leaves that the kernel has a program for.

    Operands are the arrays of all leaves, then vectors of one scalar for each leaf, then for each chunk its flat
    arrays, in which one position of all its leaves stands, then the scalars that are the same for all. Two calls are
    equal if they compute the same; their derivatives are taken from ``jaxprs`` before that matters.

    Attributes:
        program: what the kernel runs.
        chunks: how many leaves go together in one call of the kernel.
        arrays: how many of a leaf there are, of its own and in flat ones.
        local: how many scalars each leaf has of its own.
        jaxprs: per leaf, the function itself; its constants are the last of the shared scalars.
        flat: the positions, among the arrays of a leaf, of those that are parts of flat ones.
    """

    program: Program
    chunks: tuple[int, ...]
    arrays: int
    local: int
    jaxprs: tuple[core.Jaxpr, ...] = field(compare=False)
    flat: tuple[int, ...] = ()

    @abc.abstractmethod
    def avals(self, *operands: Any) -> Sequence[Any]:
        """The results' abstract values, given the operands'."""

    @abc.abstractmethod
    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        """The results in JAX."""

    @abc.abstractmethod
    def native(self, *operands: jax.Array) -> list[jax.Array]:
        """The results by the kernel, where that can run."""

    def _split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], Sequence[Any]]:
        """Arrays per leaf, vectors of local scalars, flat arrays per chunk, shared scalars."""
        leaves, own = sum(self.chunks), self.arrays - len(self.flat)
        ends = np.cumsum([leaves * own, self.local, len(self.chunks) * len(self.flat)])
        arrays, local, flat, shared = (operands[i:j] for i, j in itertools.pairwise([0, *ends, len(operands)]))
        return _rows(arrays, leaves), list(local), _rows(flat, len(self.chunks)), shared

    def _evaluate(self, operands: Sequence[jax.Array]) -> list[list[jax.Array]]:
        """Per leaf, what the function returns."""
        arrays, local, flat, shared = self._split(operands)
        whole: list[list[jax.Array]] = []
        for chunk, columns in zip(self._in_chunks(arrays), flat, strict=True):
            parts = [split(x, [own[0].shape for own in chunk]) for x in columns]
            for k, own in enumerate(chunk):
                whole.append(list(own))
                for position, column in zip(self.flat, parts, strict=True):
                    whole[-1].insert(position, column[k].array())
        results = []
        for i, (jaxpr, own) in enumerate(zip(self.jaxprs, whole, strict=True)):
            count = len(shared) - len(jaxpr.constvars)
            function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, shared[count:]))
            results.append(function(*own, *(element(x, i) for x in local), *shared[:count]))
        return results

    def _in_chunks(self, rows: Any) -> Iterable[Any]:
        """What there is one of for each leaf, chunk by chunk."""
        ends = itertools.accumulate(self.chunks, initial=0)
        return (rows[start:stop] for start, stop in itertools.pairwise(ends))

    def _calls(self, operands: Sequence[jax.Array]) -> Any:
        """For each call of the kernel its operands: coefficients, the arrays of its leaves, and flat ones."""
        arrays, local, flat, shared = self._split(operands)
        dtype = jnp.float64 if self.program.wide else jnp.float32

        def coefficients(*scalars: jax.Array) -> jax.Array:
            values = self.program.scalars(*scalars, *shared)
            return jnp.stack([value.astype(dtype) for value in values]) if values else jnp.zeros(0, dtype)

        if self.local and self.program.coefficients:
            tables = self._in_chunks(jax.vmap(coefficients)(*local))
        else:
            tables = [coefficients(*(x[0] for x in local))[None]] * len(self.chunks)
        for rows, chunk, columns in zip(tables, self._in_chunks(arrays), flat, strict=True):
            yield [rows, *(x for leaf in chunk for x in leaf), *columns]

    def _attributes(self) -> dict[str, Any]:
        return {
            "inputs": np.int64(self.arrays),
            "flat_inputs": np.asarray(self.flat, np.int64),
            "code": np.asarray(self.program.code, np.int32),
            "constants": np.asarray(self.program.constants, np.float64),
            "temporaries": np.int64(self.program.temporaries),
        }


@dataclass(frozen=True)
class MapCall(Call):
    """The function's outputs for each leaf, those of ``aliases`` (array, output) in the memory of the array.

    The outputs of arrays that are parts of flat ones are so too; results are the others of each leaf, then for each
    chunk the flat ones.
    """

    aliases: tuple[tuple[int, int], ...] = ()

    @property
    def outputs(self) -> int:
        """How many of a leaf there are, of its own and in flat ones."""
        return len(self.jaxprs[0].outvars)

    @property
    def flat_outputs(self) -> tuple[int, ...]:
        """The positions, among the outputs of a leaf, of those that are parts of flat ones."""
        return tuple(dict(self.aliases)[array] for array in self.flat)

    def avals(self, *operands: Any) -> Sequence[Any]:
        own = [[aval_of(var) for var in jaxpr.outvars] for jaxpr in self.jaxprs]
        return [*self._own(own), *(x for columns in self._split(operands)[2] for x in columns)]

    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        rows = self._evaluate(operands)
        flat = [
            join([leaf[output] for leaf in chunk]) for chunk in self._in_chunks(rows) for output in self.flat_outputs
        ]
        return [*self._own(rows), *flat]

    def native(self, *operands: jax.Array) -> list[jax.Array]:
        own, flat = [], []
        arrays, outputs = self.arrays - len(self.flat), self.outputs - len(self.flat)
        inputs_of_own = [i for i in range(self.arrays) if i not in self.flat]
        outputs_of_own = [i for i in range(self.outputs) if i not in self.flat_outputs]
        aliases = [(inputs_of_own.index(a), outputs_of_own.index(o)) for a, o in self.aliases if a not in self.flat]
        avals = self.avals(*map(jax.typeof, operands))
        for leaves, call_operands in zip(self.chunks, self._calls(operands), strict=True):
            in_place = {1 + i * arrays + a: i * outputs + o for i in range(leaves) for a, o in aliases}
            in_place |= {1 + leaves * arrays + j: leaves * outputs + j for j in range(len(self.flat))}
            results = [
                *avals[len(own) : len(own) + leaves * outputs],
                *map(jax.typeof, call_operands[1 + leaves * arrays :]),
            ]
            call = jax.ffi.ffi_call(_library.MAP, results, input_output_aliases=in_place)
            found = call(
                *call_operands,
                outputs=np.int64(self.outputs),
                flat_outputs=np.asarray(self.flat_outputs, np.int64),
                **self._attributes(),
            )
            own += found[: leaves * outputs]
            flat += found[leaves * outputs :]
        return [*own, *flat]

    def _own(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The outputs that are not parts of flat ones, of all leaves."""
        return [x for row in rows for o, x in enumerate(row) if o not in self.flat_outputs]


@dataclass(frozen=True)
class SumCall(Call):
    """The sum of the function's output over all elements of all leaves; with ``each``, per chunk a vector of sums."""

    each: bool = False

    def avals(self, *operands: Any) -> Sequence[Any]:
        del operands
        aval = aval_of(self.jaxprs[0].outvars[0])
        shapes = [(leaves,) for leaves in self.chunks] if self.each else [()]
        specs = [PartitionSpec(*(None for _ in shape)) for shape in shapes]
        return [
            aval.update(shape=shape, weak_type=False, sharding=aval.sharding.update(spec=spec))
            for shape, spec in zip(shapes, specs, strict=True)
        ]

    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        sums = [jnp.sum(x) for (x,) in self._evaluate(operands)]
        if self.each:
            return [jnp.stack(chunk) for chunk in self._in_chunks(sums)]
        return [functools.reduce(jnp.add, sums)]

    def native(self, *operands: jax.Array) -> list[jax.Array]:
        avals, summed = self.avals(), np.int64(self.program.result or 0)
        sums = [
            jax.ffi.ffi_call(_library.SUM, aval)(*chunk, summed=summed, **self._attributes())
            for aval, chunk in zip(itertools.cycle(avals), self._calls(operands), strict=False)
        ]
        return sums if self.each else [functools.reduce(jnp.add, sums)]


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
    if not _is_local(ctx.module_context) or ctx.module_context.lowering_parameters.for_export:
        return _lower_reference(ctx, *operands, call=call)
    return mlir.lower_fun(call.native, multiple_results=True)(ctx, *operands)


def _is_local(module: mlir.ModuleContext) -> bool:
    """Whether what is lowered runs as it is on each device: the partitioner cannot split a call of the kernel."""
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
