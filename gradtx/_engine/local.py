"""Functions of a leaf's arrays that XLA computes in another way where these are all on one CPU."""

from __future__ import annotations

from collections.abc import Sequence
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
