"""The state of a chain."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import jax

from gradtx._core.limits import Limits


class Hyperparameter(NamedTuple):
    """The facts that a state knows of one of its hyperparameters beside the value.

    Attributes:
        limits: the numbers that it may be.
        scheduled: whether a schedule writes it in each step.
    """

    limits: Limits = Limits()
    scheduled: bool = False


class ChainState(NamedTuple):
    """The state of a chain: a tuple of arrays and dicts, which any checkpoint library takes as it is.

    Attributes:
        count: steps taken, int32, saturating. The only clock.
        hyperparams: ``{rule: {name: scalar}}``, every numeric hyperparameter as an array (float64 if a parameter
            is float64 or complex128, else float32). A scheduled one holds the value last used. Beside each that must be
            below 1 stands what was lost of it by rounding, as ``decay_residual``: 1 − β has digits that β has not.
        slots: ``{rule: {slot: tree like the parameters, or a scalar}}``; no entry for a rule that needs none.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as optax's states do
    hyperparams: dict[str, dict[str, jax.Array]]
    slots: dict[str, dict[str, Any]]


class PackedState(NamedTuple):
    """The state of ``packed``: that of its chain, but the slots of small leaves stand in few flat arrays.

    Attributes:
        count: as in ``ChainState``.
        hyperparams: as in ``ChainState``.
        slots: ``{rule: {slot: ...}}`` as in ``ChainState``, and if any leaves are packed, each slot that has one array
            for each leaf holds ``leaves``, the tree without those that are packed, and ``flat``, the arrays that they
            stand in. Which those are is part of the structure. ``unpack_state`` gives the whole trees.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - as above
    hyperparams: dict[str, dict[str, jax.Array]]
    slots: dict[str, dict[str, Any]]


AnyState = TypeVar("AnyState", ChainState, PackedState)

Known = tuple[tuple[str, Hyperparameter], ...]
"""The facts about each hyperparameter, by ``rule.name``."""


class _Typed(type):
    """The type of a type of states that knows its hyperparameters.

    Two that are made of the same one are equal. So to JAX, the states of two chains are the same tree if only limits
    differ, or what is scheduled: they go into one ``cond``, one ``tree.map``, and where the other's was.
    """

    made_of: type
    known: Known

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, type) and getattr(other, "made_of", other) is cls.made_of

    def __hash__(cls) -> int:
        return hash(cls.made_of)


_TYPES: WeakValueDictionary[tuple[type, Known], _Typed] = WeakValueDictionary()


def knowing(kind: type[AnyState], known: Known) -> type[AnyState]:
    """The type of state that knows the hyperparameters of a chain.

    They are no arrays and no part of the structure: a checkpoint holds none of it, and reads as ever.
    """
    if not known:
        return kind
    made = _TYPES.get((kind, known))
    if made is None:
        made = _Typed(kind.__name__, (kind,), {
            "__slots__": (), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__,
            "__reduce__": _reduced, "made_of": kind, "known": known,
        })  # fmt: skip
        _TYPES[kind, known] = made
    return made  # pyright: ignore[reportReturnType] - derived from it


def known_to(state: Any) -> Known:
    """The facts that a state knows of its hyperparameters; none, if it was made by hand."""
    return getattr(type(state), "known", ())


def _reduced(state: Any) -> Any:
    made: Any = type(state)
    return _unpickled, (made.made_of, made.known, tuple(state))


def _unpickled(kind: Any, known: Known, fields: tuple[Any, ...]) -> Any:
    return knowing(kind, known)(*fields)
