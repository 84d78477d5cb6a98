"""The primitive that stands for a call of the kernel, or for its reference, until it is known where it runs."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from gradtx.native import _library
from gradtx.native._program import Program, aval_of

LEAVES_PER_CALL = 32  # of 16 to 64 compile fastest; one call with thousands of operands takes XLA a minute


@dataclass(frozen=True)
class Call(abc.ABC):
    """A function over leaves that the kernel has a program for.

    Operands are the arrays of all leaves, then the scalars of each leaf, then the scalars that are the same for all.
    Two calls are equal if they compute the same; their derivatives are taken from ``jaxprs`` before that matters.

    Attributes:
        program: what the kernel runs.
        leaves: how many.
        arrays: of a leaf, among the operands.
        local: scalars of a leaf.
        jaxprs: per leaf, the function itself; its constants are the last of the shared scalars.
    """

    program: Program
    leaves: int
    arrays: int
    local: int
    jaxprs: tuple[core.Jaxpr, ...] = field(compare=False)

    @abc.abstractmethod
    def avals(self) -> Sequence[Any]:
        """The results' abstract values."""

    @abc.abstractmethod
    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        """The results in JAX."""

    @abc.abstractmethod
    def native(self, *operands: jax.Array) -> list[jax.Array]:
        """The results by the kernel, where that can run."""

    def _split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], Sequence[Any]]:
        """Arrays per leaf, scalars per leaf, shared scalars."""
        ends = np.cumsum([self.leaves * self.arrays, self.leaves * self.local])
        arrays, local, shared = operands[: ends[0]], operands[ends[0] : ends[1]], operands[ends[1] :]
        return _rows(arrays, self.leaves), _rows(local, self.leaves), shared

    def _evaluate(self, operands: Sequence[jax.Array]) -> list[list[jax.Array]]:
        """Per leaf, what the function returns."""
        arrays, local, shared = self._split(operands)
        results = []
        for jaxpr, own, scalars in zip(self.jaxprs, arrays, local, strict=True):
            count = len(shared) - len(jaxpr.constvars)
            function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, shared[count:]))
            results.append(function(*own, *scalars, *shared[:count]))
        return results

    def _chunks(self, operands: Sequence[jax.Array]) -> Any:
        """For each call of the kernel: its number of leaves and its operands, coefficients first."""
        arrays, local, shared = self._split(operands)
        dtype = jnp.float64 if self.program.wide else jnp.float32

        def coefficients(*scalars: jax.Array) -> jax.Array:
            values = self.program.scalars(*scalars, *shared)
            return jnp.stack([value.astype(dtype) for value in values]) if values else jnp.zeros(0, dtype)

        if self.local and self.program.coefficients:
            table = jax.vmap(coefficients)(*(jnp.stack(column) for column in zip(*local, strict=True)))
        else:
            table = coefficients(*local[0])[None] if self.local else coefficients()[None]
        for start in range(0, self.leaves, LEAVES_PER_CALL):
            chunk = arrays[start : start + LEAVES_PER_CALL]
            rows = table if len(table) == 1 else table[start : start + len(chunk)]
            yield len(chunk), [rows, *(x for leaf in chunk for x in leaf)]

    def _attributes(self) -> dict[str, Any]:
        return {
            "inputs": np.int64(self.arrays),
            "code": np.asarray(self.program.code, np.int32),
            "constants": np.asarray(self.program.constants, np.float64),
            "temporaries": np.int64(self.program.temporaries),
            "wide": self.program.wide,
        }


@dataclass(frozen=True)
class MapCall(Call):
    """The function's outputs for each leaf, those of ``aliases`` (array, output) in the memory of the array."""

    aliases: tuple[tuple[int, int], ...] = ()

    @property
    def outputs(self) -> int:
        return len(self.jaxprs[0].outvars)

    def avals(self) -> Sequence[Any]:
        return [aval_of(var) for jaxpr in self.jaxprs for var in jaxpr.outvars]

    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        return [x for leaf in self._evaluate(operands) for x in leaf]

    def native(self, *operands: jax.Array) -> list[jax.Array]:
        results, avals = [], self.avals()
        for leaves, chunk in self._chunks(operands):
            in_place = {
                1 + leaf * self.arrays + array: leaf * self.outputs + output
                for leaf in range(leaves)
                for array, output in self.aliases
            }
            own = avals[len(results) : len(results) + leaves * self.outputs]
            call = jax.ffi.ffi_call(_library.MAP, own, input_output_aliases=in_place)
            results += call(*chunk, outputs=np.int64(self.outputs), **self._attributes())
        return results


@dataclass(frozen=True)
class SumCall(Call):
    """The sum of the function's output over all elements of all leaves."""

    def avals(self) -> Sequence[Any]:
        aval = aval_of(self.jaxprs[0].outvars[0])
        return [aval.update(shape=(), weak_type=False)]

    def reference(self, *operands: jax.Array) -> list[jax.Array]:
        return [functools.reduce(jnp.add, [jnp.sum(x) for (x,) in self._evaluate(operands)])]

    def native(self, *operands: jax.Array) -> list[jax.Array]:
        (aval,) = self.avals()
        summed = np.int64(self.program.result or 0)
        sums = [
            jax.ffi.ffi_call(_library.SUM, aval)(*chunk, summed=summed, **self._attributes())
            for _, chunk in self._chunks(operands)
        ]
        return [functools.reduce(jnp.add, sums)]


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
call_p.def_abstract_eval(lambda *operands, call: call.avals())
ad.primitive_jvps[call_p] = _jvp
batching.primitive_batchers[call_p] = _batch
mlir.register_lowering(call_p, _lower_reference)
mlir.register_lowering(call_p, _lower_cpu, platform="cpu")
