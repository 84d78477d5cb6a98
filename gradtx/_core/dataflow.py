"""What a value depends on: the fate of one input of a function, and a dependence that no compiler sees through."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from jax.extend import core

__all__ = ["Flow", "flows", "never"]


def never(x: jax.Array) -> jax.Array:
    """False for each element, which a compiler cannot know: what is chosen by it comes after x, and is sharded as x."""
    return (x.real < 0) & (x.real > 0)


class Flow(enum.Enum):
    """The relation of a value to the input that is followed."""

    NONE = "does not depend on it"
    SAME = "is it, unchanged"
    MADE = "may depend on it"


def flows(function: Callable[..., Any], *args: Any, follow: int | Collection[int]) -> list[Flow]:
    """For each leaf of the result, what it is to one leaf of the arguments, or to several; nothing is computed.

    Conditions are looked into: what both sides keep is kept. Loops are not: what goes in may change.

    Args:
        function: it can be traced.
        *args: its arguments; only shapes and dtypes matter.
        follow: which leaf, or which of them, counted over all arguments.

    >>> import jax.numpy as jnp
    >>> print(*flows(lambda x, y: (x, x + y, y), jnp.ones(2), jnp.ones(2), follow=0))
    Flow.SAME Flow.MADE Flow.NONE
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    followed = [follow] if isinstance(follow, int) else follow
    return _through(jaxpr, [Flow.SAME if i in followed else Flow.NONE for i in range(len(jaxpr.invars))])


def _through(jaxpr: Any, inputs: Sequence[Flow]) -> list[Flow]:
    known: dict[Any, Flow] = dict(zip(jaxpr.invars, inputs, strict=True))

    def look_up(x: Any) -> Flow:
        return Flow.NONE if isinstance(x, core.Literal) else known.get(x, Flow.NONE)

    for equation in jaxpr.eqns:
        known |= zip(equation.outvars, _outputs(equation, [look_up(x) for x in equation.invars]), strict=True)
    return [look_up(x) for x in jaxpr.outvars]


def _outputs(equation: Any, inputs: list[Flow]) -> list[Flow]:
    match equation.primitive.name:
        case "jit" | "pjit":
            return _through(equation.params["jaxpr"].jaxpr, inputs)
        case "cond" if inputs[0] is Flow.NONE:
            sides = [_through(branch.jaxpr, inputs[1:]) for branch in equation.params["branches"]]
            return [_either(outputs) for outputs in zip(*sides, strict=True)]
        case "select_n" if inputs[0] is Flow.NONE:
            return [_either(inputs[1:])]
        case "optimization_barrier" | "alone":  # which hide a value from the compiler alone
            return inputs
    touched = any(flow is not Flow.NONE for flow in inputs)
    return [Flow.MADE if touched else Flow.NONE] * len(equation.outvars)


def _either(choices: Sequence[Flow]) -> Flow:
    """The relation of a value that is one of these."""
    first, *others = set(choices)
    return Flow.MADE if others else first
