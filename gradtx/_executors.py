"""How rules run. The reference executor maps each rule over the leaves; any other is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._maths import Maths, Trees
from gradtx._numerics import real_dtype
from gradtx._signal import Signal


class Work(NamedTuple):
    """One step of a chain, ready to run.

    Attributes:
        rules: the rules in order.
        coefficients: per rule, what its ``tick`` gave.
        updates: per leaf, the incoming updates in the dtype that arithmetic happens in.
        slots: per rule, {slot: one array per leaf}; for a rule that maps whole trees, its state.
        params: per leaf, the parameters as they are stored, or None.
        treedef: the structure of the updates.
        extra: the extra arguments of ``update``, for rules that map whole trees.
    """

    rules: Sequence[Maths]
    coefficients: Sequence[dict[str, jax.Array]]
    updates: Sequence[jax.Array]
    slots: Sequence[Any]
    params: Sequence[jax.Array] | None
    treedef: Any
    extra: dict[str, Any]


Executor = Callable[[Work], tuple[list[jax.Array], list[Any]]]


def reference(work: Work) -> tuple[list[jax.Array], list[Any]]:
    """Run rule by rule, leaf by leaf, and leave the fusing to XLA: the directions, and the slots as stored."""
    signals = [Signal(u, u) for u in work.updates]
    dtypes = [real_dtype(u.dtype) for u in work.updates]
    if work.params is None:
        params = [None] * len(signals)
    else:
        params = [_widen(p, dtype) for p, dtype in zip(work.params, dtypes, strict=True)]
    gradient_phase = True
    slots_after = []
    for rule, coefficients, slots in zip(work.rules, work.coefficients, work.slots, strict=True):
        gradient_phase = gradient_phase and not rule.accumulates
        if rule.whole:
            signals, after = _map_tree(rule, signals, slots, params, work)
        else:
            signals, after = _map_leaves(rule, signals, slots, params, _per_leaf(rule, coefficients, signals, dtypes))
        if gradient_phase:
            signals = [s._replace(gradient=s.direction) for s in signals]
        slots_after.append(after)
    return [s.direction for s in signals], slots_after


def _per_leaf(
    rule: Maths, coefficients: dict[str, jax.Array], signals: list[Signal], dtypes: list[jnp.dtype]
) -> list[SimpleNamespace]:
    """The coefficients for each leaf in its dtype; cast, and settled over the tree, once and not once per leaf."""
    cast = {dtype: _cast(coefficients, dtype) for dtype in set(dtypes)}
    if rule.scope is None:
        return [cast[dtype] for dtype in dtypes]
    if rule.scope == "leaf":
        measured = [rule.measure([s.direction]) for s in signals]
    else:
        measured = [rule.measure([s.direction for s in signals])] * len(signals)
    return [
        _cast(rule.settle(cast[dtype], number.astype(dtype)), dtype)
        for dtype, number in zip(dtypes, measured, strict=True)
    ]


def _map_leaves(
    rule: Maths,
    signals: list[Signal],
    slots: dict[str, list[jax.Array]],
    params: Sequence[jax.Array | None],
    coefficients: list[SimpleNamespace],
) -> tuple[list[Signal], dict[str, list[jax.Array]]]:
    signals_after: list[Signal] = []
    after: dict[str, list[jax.Array]] = {slot: [] for slot in slots}
    for i, signal in enumerate(signals):
        dtype = real_dtype(signal.direction.dtype)
        loaded = SimpleNamespace(**{slot: _widen(arrays[i], dtype) for slot, arrays in slots.items()})
        signal, computed = rule.apply(signal, loaded, params[i], coefficients[i])
        signals_after.append(signal)
        for slot, arrays in slots.items():
            after[slot].append(computed[slot].astype(arrays[i].dtype))
    return signals_after, after


def _map_tree(
    rule: Maths, signals: list[Signal], state: Any, params: Sequence[jax.Array | None], work: Work
) -> tuple[list[Signal], Any]:
    tree = work.treedef.unflatten
    trees = Trees(
        tree(work.updates),
        tree([s.gradient for s in signals]),
        tree([s.direction for s in signals]),
        None if work.params is None else tree(params),
        work.extra,
    )
    updates, after = rule.apply_tree(trees, state)
    directions = work.treedef.flatten_up_to(updates)
    signals = [s._replace(direction=u.astype(s.direction.dtype)) for s, u in zip(signals, directions, strict=True)]
    return signals, after


def _widen(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, dtype))


def _cast(coefficients: dict[str, jax.Array], dtype: jnp.dtype) -> SimpleNamespace:
    return SimpleNamespace(**{name: value.astype(dtype) for name, value in coefficients.items()})
