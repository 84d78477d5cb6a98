"""Transformations around other transformations, with a state and a step of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.core
import optax

from gradtx._chain import seal
from gradtx._core.control import Once
from gradtx._engine import checks
from gradtx._engine.backends import current
from gradtx._engine.transformation import State, Transformation, Value, unchanged
from gradtx.rules.base import Rule

T = TypeVar("T")


class Wrapper(Value[State]):
    """A transformation around others, as a class to derive from: fields are its arguments.

    Deriving makes a frozen dataclass that is an optax transformation. A wrapper defines ``init`` and ``run`` itself,
    and its state is a NamedTuple of its own; in a chain it is one opaque rule (see ``seal``).
    """

    conditions: ClassVar[Mapping[str, str]] = {}
    """By the names of ``_members``, when their steps happen, in words; nothing of those that always do."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The wrapper as one opaque rule."""
        return (seal(self),)

    @property
    def takes_stored(self) -> bool:
        """True if one in it sees parameters as they are stored."""
        return any(isinstance(tx, Transformation) and tx.takes_stored for tx in self._inside())

    def init(self, params: Any) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def run(
        self, updates: Any, state: State, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, State]:
        """One step: updates to add to the parameters, or the parameters after it, and the next state."""
        raise NotImplementedError

    @property
    def takes_flag(self) -> bool:
        """True if it has a ``run_when``, and all that is inside takes flags."""
        if type(self).run_when is Transformation.run_when or not current(traced=True).takes_flags:
            return False
        return all(isinstance(tx, Transformation) and tx.takes_flag for tx in self._inside())

    def _inside(self) -> list[Any]:
        """The transformations among its arguments."""
        values = jax.tree.leaves(list(self._values().values()), is_leaf=_is_transformation)
        return [x for x in values if _is_transformation(x)]

    def arrays_read(self) -> int | None:
        """The arrays like the gradients that it reads and writes itself, beside the steps inside; None: not known."""
        return None

    def _members(self, state: Any) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        """The transformations inside by their names, "" for an only one, each with its part of the state."""
        del state
        return {}


def _is_transformation(x: Any) -> bool:
    return isinstance(x, optax.GradientTransformation)


def both(when: Any, flag: Any) -> Any:
    """True if two flags are, of which the first may be known to be."""
    return flag if when is True else when & flag


def not_yet(due: Any, step: Once[tuple[Any, ...]], params: Any, apply_updates: bool) -> Any:
    """The result of a step in whose place another one comes: as ``unchanged``, but None where nobody will see it.

    Two steps that change the same arrays stand under two conditions, the second with the results of the first. Where
    they are two branches of one condition, XLA copies the arrays for one of them.

    Args:
        due: whether the other step comes.
        step, params, apply_updates: as for ``unchanged``.
    """
    return unchanged(step, params, apply_updates) if apply_updates or isinstance(due, jax.core.Tracer) else None


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
