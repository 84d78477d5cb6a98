"""Functions of a leaf's arrays that XLA computes in another way where these are all on one CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from gradtx._core.mesh import varying
from gradtx.native._primitive import is_local


class Local:
    """A function of arrays and scalars. A call of it is known to be on one CPU, or not, when it is compiled."""

    def plain(self, *operands: jax.Array) -> list[jax.Array]:
        """The function, wherever it is."""
        raise NotImplementedError

    def local(self, *operands: jax.Array) -> list[jax.Array]:
        """The same on one CPU."""
        raise NotImplementedError

    def avals(self, *operands: Any) -> list[Any]:
        """The abstract values of the results, from those of the operands."""
        return [x.aval for x in jax.make_jaxpr(self.plain)(*operands).jaxpr.outvars]

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        return local_p.bind(*operands, of=self)


def is_worthwhile(operands: Sequence[jax.Array], least: int) -> bool:
    """True for arrays of so many elements that may be on one CPU, in what is compiled."""
    if operands[0].size < least or varying(*operands) or jax.default_backend() != "cpu":
        return False
    return any(isinstance(x, jax.core.Tracer) for x in operands)


local_p = core.Primitive("local")
local_p.multiple_results = True


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, of: Local) -> tuple[Any, Any]:
    return jax.jvp(of.plain, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batch(operands: Sequence[Any], axes: Sequence[Any], *, of: Local) -> tuple[Any, Any]:
    results = jax.vmap(of.plain, in_axes=tuple(axes))(*operands)
    return results, [0] * len(results)


def _lower(ctx: mlir.LoweringRuleContext, *operands: Any, of: Local) -> Any:
    here = is_local(ctx.module_context) and not ctx.module_context.lowering_parameters.for_export
    return mlir.lower_fun(jax.jit(of.local if here else of.plain), multiple_results=True)(ctx, *operands)


def _lower_plain(ctx: mlir.LoweringRuleContext, *operands: Any, of: Local) -> Any:
    return mlir.lower_fun(of.plain, multiple_results=True)(ctx, *operands)


local_p.def_impl(lambda *operands, of: jax.jit(of.plain)(*operands))
local_p.def_abstract_eval(lambda *avals, of: of.avals(*avals))
ad.primitive_jvps[local_p] = _jvp
batching.primitive_batchers[local_p] = _batch
mlir.register_lowering(local_p, _lower_plain)
mlir.register_lowering(local_p, _lower, platform="cpu")


# -- One leaf ---------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def run(fn: Callable[..., Sequence[jax.Array]], *operands: jax.Array) -> Sequence[jax.Array]:
    """A function of a leaf's arrays and of scalars: traced once for all leaves of one kind, and inlined by XLA."""
    return _run(fn, *alone(operands))


@functools.partial(jax.jit, static_argnums=0)
def _run(fn: Callable[..., Sequence[jax.Array]], *operands: jax.Array) -> Sequence[jax.Array]:
    return fn(*operands)


def traced(fn: Callable[..., Sequence[jax.Array]], avals: Sequence[Any]) -> core.ClosedJaxpr:
    """The trace of such a function, which ``run`` uses as well."""
    return _run.trace(fn, *avals).jaxpr


def alone(operands: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The operands of one leaf, which has its scalars to itself: XLA then makes the same loops of leaves of one shape.

    Scalars that leaves share it takes into the loops of the first in another order than into those of the rest. Loops
    that are the same it compiles once, and for each other one it takes as long again.
    """
    return alone_p.bind(*operands) if jax.default_backend() == "cpu" else operands


alone_p = core.Primitive("alone")
alone_p.multiple_results = True


def _alone_on_cpu(ctx: mlir.LoweringRuleContext, *operands: Any) -> Any:
    if not is_local(ctx.module_context) or ctx.module_context.lowering_parameters.for_export:
        return operands
    return mlir.lower_fun(lambda *xs: jax.lax.optimization_barrier(xs), multiple_results=True)(ctx, *operands)


alone_p.def_impl(lambda *operands: list(operands))
alone_p.def_abstract_eval(lambda *avals: list(avals))
ad.primitive_jvps[alone_p] = lambda primals, tangents: (alone_p.bind(*primals), list(tangents))
batching.primitive_batchers[alone_p] = lambda operands, axes: (list(operands), axes)
mlir.register_lowering(alone_p, lambda ctx, *operands: operands)
mlir.register_lowering(alone_p, _alone_on_cpu, platform="cpu")
