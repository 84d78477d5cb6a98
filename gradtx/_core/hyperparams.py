"""The hyperparameters in a state, of any nesting: reading and changing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from gradtx._core.limits import checked
from gradtx._core.numerics import residual_of, split
from gradtx._core.selectors import flatten_with_keys
from gradtx._core.state import ChainState, Hyperparameter, Known, PackedState, known_to
from gradtx._core.walk import check_state, walk, word, words

State = TypeVar("State")

_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


class Entry(NamedTuple):
    """A hyperparameter in a state.

    Attributes:
        leaf: the position of its value among the leaves of the state.
        value: the value.
        facts: what its state knows of it.
        residual: the position of what is lost of the value by rounding, if the state holds it.
    """

    leaf: int
    value: jax.Array
    facts: Hyperparameter
    residual: int | None = None


def hyperparams(state: Any) -> dict[str, jax.Array]:
    """All hyperparameters in a state by their full names: what ``set_hyperparams`` changes.

    Args:
        state: of a chain, a rule, a wrapper, or anything with such a state in it: of wrappers in wrappers, of optax's
            ``chain``, ``masked``, ``partition``, ``MultiSteps`` or ``inject_hyperparams``, Flax's ``TrainState``, the
            ``opt_state`` of an NNX ``Optimizer``. Inside ``jit`` as well.

    Returns:
        ``{full name: scalar}`` in the order of the state. A full name is the rule's and the hyperparameter's own, after
        all that they stand in: ``"rms.decay"``, in the first phase of a ``switch`` ``"first.rms.decay"``, in the second
        transformation of an optax chain ``"1.rms.decay"``. A scheduled one has the value last used.

    A state that holds none gives an empty dict.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.accumulate(gradtx.sgd(0.5, momentum=0.25), 4)
    >>> for name, value in gradtx.hyperparams(tx.init(jnp.zeros(3))).items():
    ...     print(name, value)
    inner.scale_by_learning_rate.learning_rate 0.5
    inner.trace.decay 0.25
    """
    check_state("hyperparams", state)
    return {name: entry.value for name, entry in find(state).items()}


def set_hyperparams(state: State, values: Mapping[str, ArrayLike] | None = None, /, **by_name: ArrayLike) -> State:
    """The same state with other hyperparameters, wherever in it they are. Nothing is recompiled: they are data.

    Args:
        state: as for ``hyperparams``: what ``init`` or ``update`` returned, or anything that holds it.
        values: new values by name. A name is a full name as ``hyperparams`` lists them, or the end of one that no other
            has: ``"learning_rate"``, or ``"rms_1.decay"`` where several rules have one of that name,
            ``"first.rms.decay"`` where several chains have.
        **by_name: the same as keywords.

    Returns:
        A new state; the one given is not changed. Values take the dtype of what they replace, and are copies: neither
        a numpy array that changes later nor an array that is donated with the state has to do with the other.

    **A scheduled hyperparameter is refused**, since its schedule would overwrite it in the next step. To steer one by
    hand, build the chain with a number; a schedule that you write may read a Python variable (outside of ``jit``), and
    ``gradtx.scale(1.0)`` at the end of a chain is a factor to set beside a schedule. What is scheduled, and the limits
    of a hyperparameter, a state knows from the ``init`` or ``update`` that made it. A state that went through something
    which keeps arrays and not types, as ``nnx.state(optimizer)``, knows neither: give ``optimizer.opt_state``.

    Raises:
        ValueError: for a name that is unknown (the known ones are listed) or ambiguous (the candidates are
            listed), a name given twice, a scheduled hyperparameter, and a value that is NaN, outside of the limits that
            the rule has for it, infinite in its dtype, not a scalar (or not of the shape it replaces). Under ``jit``
            values are not known, and limits not checked.
        TypeError: for a value that is no real number, and for a state without hyperparameters.

    >>> import gradtx, jax.numpy as jnp
    >>> state = gradtx.skip_nonfinite(gradtx.adam(1e-3)).init(jnp.zeros(3))
    >>> state = gradtx.set_hyperparams(state, {"rms.decay": 0.99}, learning_rate=3e-4)
    >>> float(state.inner.hyperparams["rms"]["decay"])
    0.9900000095367432
    """
    entries = find(state)
    if not entries:
        raise TypeError(
            f"set_hyperparams: expected the ChainState of a gradtx chain, found {type(state).__name__} without any: "
            "there are no hyperparameters in it"
        )
    changes: dict[str, tuple[jax.Array, jax.Array]] = {}
    given: dict[str, str] = {}
    for name, value in [*(values or {}).items(), *by_name.items()]:
        full = find_name("set_hyperparams", entries, name)
        if full in given:
            raise ValueError(f"set_hyperparams: {full} is given twice, as {given[full]!r} and {name!r}")
        if entries[full].facts.scheduled:
            raise ValueError(
                f"set_hyperparams: {full} follows a schedule, which would overwrite it in the next step. Build the "
                "chain with a number to set it by hand, or with another schedule; to change the height of this one, "
                "put gradtx.scale(1.0) at the end of the chain and set its factor."
            )
        given[full] = name
        changes[full] = _in_place_of(entries[full], full, value)
    return with_values(state, changes)


def find(state: Any) -> dict[str, Entry]:
    """The hyperparameters in a state, by full name: what stands in a dict that is called ``hyperparams``."""
    facts: dict[str, Hyperparameter] = {}
    for keys, node in walk(state, (ChainState, PackedState, *_INJECTED)):
        facts |= {".".join((*words(keys), name)): of_name for name, of_name in _facts(node)}
    entries: dict[str, Entry] = {}
    for i, (keys, value) in enumerate(flatten_with_keys(state)[0]):
        if any(word(key) == "hyperparams" for key in keys[:-1]):
            name = ".".join(words(keys))
            rounded = next((other for other in entries if residual_of(other) == name), None)
            if rounded is None:
                entries[name] = Entry(i, value, facts.get(name, Hyperparameter()))
            else:
                entries[rounded] = entries[rounded]._replace(residual=i)
    return entries


def _facts(state: Any) -> Known:
    if not isinstance(state, _INJECTED):
        return known_to(state)
    return tuple((name, Hyperparameter(scheduled=True)) for name in getattr(state, "hyperparams_states", ()))


def with_values(state: State, values: Mapping[str, tuple[Any, Any]]) -> State:
    """The state with other values, by full name, each with its residual, as they are."""
    entries = find(state)
    leaves, treedef = jax.tree.flatten(state)
    for name, (value, residual) in values.items():
        leaves[entries[name].leaf] = value
        if (place := entries[name].residual) is not None:
            leaves[place] = residual
    return treedef.unflatten(leaves)


def _in_place_of(entry: Entry, name: str, value: Any) -> tuple[jax.Array, jax.Array]:
    """A value, and its residual, as arrays of their own that can stand where the old ones are."""
    old = entry.value if isinstance(entry.value, jax.Array) else jnp.asarray(entry.value)
    traced = isinstance(value, jax.core.Tracer)
    what = f"set_hyperparams: {name}"
    new = value if traced else checked(what, value, entry.facts.limits, old.dtype)
    if traced and not jnp.issubdtype(new.dtype, jnp.floating) and not jnp.issubdtype(new.dtype, jnp.integer):
        raise TypeError(f"{what} must be a number or a scalar array, found {value!r}")
    if new.shape not in ((), old.shape):
        raise ValueError(f"{what} has shape {new.shape}; in the state it has shape {old.shape}")
    if traced:
        rounded, residual = (jnp.broadcast_to(x, old.shape) for x in split(new, old.dtype))
        return jnp.array(rounded, copy=True), residual
    rounded, residual = split(np.broadcast_to(new, old.shape), old.dtype)
    if isinstance(old, jax.core.Tracer) or not old.committed:
        return rounded, residual
    return jax.device_put(rounded, old.sharding), jax.device_put(residual, old.sharding)


def find_name(caller: str, names: Iterable[str], name: str) -> str:
    """The one full name, of these, that this is or is the end of: ``decay`` of ``rms.decay``.

    Raises:
        ValueError: for a name that is unknown (the known ones are listed) or ambiguous (the candidates are listed).
    """
    names = list(names)
    matches = [name] if name in names else [full for full in names if full.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    listing = ", ".join(sorted(matches or names)) or "none"
    if matches:
        raise ValueError(f"{caller}: {name!r} is ambiguous; say which one: {listing}")
    raise ValueError(f"{caller}: no hyperparameter {name!r}; this state has: {listing}")
