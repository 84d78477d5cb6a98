"""Control flow whose types follow from the data: dtypes, shardings, and the axes of a mesh that shards differ along."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core

from gradtx._core.mesh import in_host_memory, spread_as, vary, varying

T = TypeVar("T")

only_types: ContextVar[bool] = ContextVar("only_types", default=False)
"""True if nothing but the types of a result is asked for, so that schedules need not be called."""


@contextlib.contextmanager
def without_schedules() -> Iterator[None]:
    """A block in which only types are asked for, and no schedules: one may be plain Python, or count how often."""
    token = only_types.set(True)
    try:
        yield
    finally:
        only_types.reset(token)


def types_of(function: Callable[..., Any], *args: Any) -> Any:
    """The result of ``jax.eval_shape``, without asking schedules."""
    with without_schedules():
        return jax.eval_shape(function, *args)


class Once(Generic[T]):
    """A call of a function that is traced at most once, however often its result and its types are asked for.

    Attributes:
        function: the function.
        arguments: trees of arrays.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any):
        self.function, self.arguments = function, arguments

    @functools.cached_property
    def _traced(self) -> tuple[Any, Any]:
        jaxpr, result = jax.make_jaxpr(self.function, return_shape=True)(*self.arguments)
        return jaxpr, jax.tree.structure(result)

    @property
    def types(self) -> T:
        """The shapes and dtypes of the result, for a caller that may not need it; with values, not from the trace."""
        if self.arguments and not self._is_traced and "_traced" not in vars(self):
            return types_of(self.function, *self.arguments)
        return self.avals

    @property
    def avals(self) -> T:
        """The abstract values of the result."""
        jaxpr, treedef = self._traced
        return treedef.unflatten(jaxpr.out_avals)

    def __call__(self) -> T:
        return self.replayed() if self._is_traced and "_traced" in vars(self) else self.function(*self.arguments)

    @property
    def _is_traced(self) -> bool:
        return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self.arguments))

    def replayed(self) -> T:
        """The result, from what was traced; with values, the call itself compiles less."""
        jaxpr, treedef = self._traced
        return treedef.unflatten(core.jaxpr_as_fun(jaxpr)(*jax.tree.leaves(self.arguments)))


def kept(flag: Any, after: T, before: T) -> T:
    """The numbers after a step, or those before it where the flag is false; no flag: those after it.

    It is for scalars, and for what is small: both are there, and one is chosen. For arrays see ``either``.
    """
    if flag is None or flag is True:
        return after
    return jax.tree.map(lambda x, y: y if x is y else jnp.where(flag, x, y), after, before)


def either(flag: Any, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """``yes()`` or ``no()``, by a flag: ``lax.cond``, or ``if`` where the flag is known, so that nothing is compiled.

    The two give trees of one structure with the same shapes and dtypes. Arrays that ``yes`` alone changes are changed
    in place; of those that ``no`` changes, or both, XLA makes copies. Where only one result differs between the shards
    of a ``shard_map`` both are taken to; on a mesh of explicit axes the second gets the sharding of the first.
    """
    if not isinstance(flag, jax.core.Tracer):
        return yes() if flag else no()
    branches = [branch if isinstance(branch, Once) else Once(branch) for branch in (yes, no)]
    results = [jax.tree.leaves(branch.avals) for branch in branches]
    if any(in_host_memory(x) for x in results[0]):
        raise TypeError(
            "gradtx: a condition gives back no arrays in the memory of the host: put offload around what decides, as "
            "offload(skip_nonfinite(tx)), and not into it."
        )
    axes = [varying(flag, *pair) for pair in zip(*results, strict=False)]

    def alike(branch: Once[T]) -> T:
        result, treedef = jax.tree.flatten(branch.replayed())
        return treedef.unflatten(
            [vary(spread_as(x, like), to) for x, like, to in zip(result, results[0], axes, strict=True)]
        )

    return jax.lax.cond(flag, *(functools.partial(alike, branch) for branch in branches))
