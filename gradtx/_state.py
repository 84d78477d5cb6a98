"""The state of a chain, and changing the hyperparameters in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class ChainState(NamedTuple):
    """The state of a chain: a tuple of arrays and dicts, which any checkpoint library takes as it is.

    Attributes:
        count: steps taken, int32, saturating. The only clock.
        hyperparams: ``{rule: {name: scalar}}``, every numeric hyperparameter as an array (float64 if a parameter
            is float64 or complex128, else float32). A scheduled one holds the value last used.
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


def set_hyperparams(
    state: AnyState, values: Mapping[str, ArrayLike] | None = None, /, **by_name: ArrayLike
) -> AnyState:
    """The same state with other hyperparameters. Nothing is recompiled: they are data.

    Args:
        state: what ``init`` or ``update`` of a gradtx chain or rule, or of ``packed``, returned.
        values: new values by name: ``"decay"``, or ``"rms_1.decay"`` where several rules have one of that name.
        **by_name: the same as keywords.

    Returns:
        A new state; the one given is not changed. Values take the dtype of what they replace.

    A scheduled hyperparameter is written anew from its schedule by the next ``update``: to steer one by hand,
    build the chain with a number instead of a schedule.

    Raises:
        ValueError: for a name that is unknown (the known ones are listed) or ambiguous (the candidates are
            listed), a name given twice, or a value that is not a scalar (or not of the shape it replaces).
        TypeError: for a state that no gradtx chain made.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.adam(1e-3).init(jnp.zeros(3))
    >>> state = gradtx.set_hyperparams(state, {"rms.decay": 0.99}, learning_rate=3e-4)
    >>> float(state.hyperparams["rms"]["decay"])
    0.9900000095367432
    """
    if not isinstance(state, ChainState | PackedState):
        raise TypeError(
            f"set_hyperparams: expected the ChainState of a gradtx chain, found {type(state).__name__}. "
            "If the chain stands inside another wrapper, change the ChainState inside that wrapper's state."
        )
    hyperparams = {rule: dict(own) for rule, own in state.hyperparams.items()}
    known = {f"{rule}.{own}": (rule, own) for rule, names in state.hyperparams.items() for own in names}
    done: dict[tuple[str, str], str] = {}
    for name, value in [*(values or {}).items(), *by_name.items()]:
        rule, own = known[find_name("set_hyperparams", known, name)]
        if (rule, own) in done:
            raise ValueError(f"set_hyperparams: {rule}.{own} is given twice, as {done[rule, own]!r} and {name!r}")
        done[rule, own] = name
        old = hyperparams[rule][own]
        new = jnp.asarray(value, old.dtype)
        if new.shape not in ((), old.shape):
            raise ValueError(f"set_hyperparams: {name} has shape {new.shape}, {rule}.{own} has shape {old.shape}")
        new = jnp.broadcast_to(new, old.shape)
        hyperparams[rule][own] = jax.tree.unflatten(jax.tree.structure(old), [new])  # as Flax has it: in a Variable
    return state._replace(hyperparams=hyperparams)


def find_name(caller: str, known: Iterable[str], name: str) -> str:
    """The one full name, of those known, that this is or is the end of: ``decay`` of ``rms.decay``.

    Raises:
        ValueError: for a name that is unknown (the known ones are listed) or ambiguous (the candidates are listed).
    """
    known = list(known)
    matches = [full for full in known if full == name] or [full for full in known if full.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    listing = ", ".join(sorted(matches or known)) or "none"
    if matches:
        raise ValueError(f"{caller}: {name!r} is ambiguous; say which one: {listing}")
    raise ValueError(f"{caller}: no hyperparameter {name!r}; this state has: {listing}")
