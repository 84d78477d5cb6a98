"""Transformations around other transformations, with a state and an update of their own."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._chain import seal, started
from gradtx._core.numerics import is_inexact
from gradtx._engine import checks, inputs
from gradtx._engine.engine import applied
from gradtx._engine.transformation import Value
from gradtx.rules.base import Rule

T = TypeVar("T")


class Wrapper(Value):
    """A transformation around others, as a class to derive from: fields are its arguments.

    Deriving makes a frozen dataclass that is an optax transformation. A wrapper defines ``init`` and ``update`` itself,
    and its state is a NamedTuple of its own; in a chain it is one opaque rule (see ``seal``).
    """

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The wrapper as one opaque rule."""
        return (seal(self),)

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        """One step: updates to add to the parameters, and the next state."""
        raise NotImplementedError

    def _members(self, state: Any) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        """The transformations inside by their names, "" for an only one, each with its part of the state."""
        del state
        return {}

    def _step(self, params: Any, grads: Any, state: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        updates, state = self.update(grads, state, params, **extra)
        return applied(params, updates), state


def checked_state(who: str, state: Any, kind: type[T], *counts: str) -> T:
    """The state, if it is one that ``init`` made.

    Args:
        who: the wrapper, for the error.
        state: what ``update`` was given.
        kind: the type of its states.
        counts: the names of its counts; those that are None are left out.

    Raises:
        TypeError: for a state of another type, or a count that is no integer.
        ValueError: for a count that is no scalar.
    """
    if not isinstance(state, kind):
        raise TypeError(
            f"{who}: update needs the {kind.__name__} that its init returned, found {type(state).__name__}. "
            "The arguments are update(updates, state, params)."
        )
    values = {name: getattr(state, name) for name in counts}
    checks.check_counts(who, **{name: count for name, count in values.items() if count is not None})
    return state


def strong_started(tx: optax.GradientTransformation, params: Any) -> Any:
    """The state of the transformation inside; numbers as arrays with a dtype of their own, which they will keep."""
    return jax.tree.map(strong, started(tx, params))


def run_inside(tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Any:
    """A step of the transformation inside, its state held to the types it started with."""
    updates, state = seal(tx).run(updates, state, params, extra)
    return jax.tree.map(strong, updates), state


def strong(x: Any) -> Any:
    """A number as an array with a dtype of its own; what stands for no gradient as it is."""
    if inputs.has_no_gradient(x):
        return x
    return jnp.asarray(x, jnp.asarray(x).dtype)  # asking for the dtype takes a weak type away


def filled(like: Any, value: Any) -> Any:
    """Arrays of these shapes and dtypes, full of the value; of 0 where a dtype is neither floating nor complex."""

    def one(x: Any) -> Any:
        if inputs.has_no_gradient(x):
            return np.zeros(x.shape, x.dtype)
        return jnp.full(x.shape, value if is_inexact(x.dtype) else 0, x.dtype)

    return jax.tree.map(one, like)
