"""Transformations around other transformations, with a state and an update of their own."""

from __future__ import annotations

from typing import Any

import optax

from gradtx._chain import seal
from gradtx._engine.engine import applied
from gradtx.rules.base import Rule, Value


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
