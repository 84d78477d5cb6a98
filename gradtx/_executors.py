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


class Group(NamedTuple):
    """Leaves that the same rules act on.

    Attributes:
        members: per rule, whether it acts on them.
        leaves: their positions.
        coefficients: per rule, what its ``tick`` gave for them; {} for a rule that does not act on them.
    """

    members: tuple[bool, ...]
    leaves: Sequence[int]
    coefficients: Sequence[dict[str, jax.Array]]


class Work(NamedTuple):
    """One step of a chain, ready to run.

    Attributes:
        rules: the rules in order.
        groups: the leaves, by the rules that act on them.
        updates: per leaf, the incoming updates in the dtype that arithmetic happens in.
        slots: per rule, {slot: one array per leaf, None where it does not act}; for a rule that maps whole trees, its
            state.
        params: per leaf, the parameters as they are stored, or None.
        treedef: the structure of the updates.
        extra: the extra arguments of ``update``, for rules that map whole trees.
    """

    rules: Sequence[Maths]
    groups: Sequence[Group]
    updates: Sequence[jax.Array]
    slots: Sequence[Any]
    params: Sequence[jax.Array] | None
    treedef: Any
    extra: dict[str, Any]


Executor = Callable[[Work], tuple[list[jax.Array], list[Any]]]


def reference(work: Work) -> tuple[list[jax.Array], list[Any]]:
    """Run rule by rule, leaf by leaf, and leave the fusing to XLA: the directions, and the slots as stored."""
    signals = [Signal(u, u) for u in work.updates]
    params = _loaded_params(work)
    in_gradient_phase = [True] * len(signals)
    slots_after = []
    for r, (rule, slots) in enumerate(zip(work.rules, work.slots, strict=True)):
        acts = sorted(i for group in work.groups if group.members[r] for i in group.leaves)
        if rule.whole:
            after = _map_tree(rule, signals, acts, slots, params, work)
        else:
            after = _map_leaves(rule, signals, slots, params, _per_leaf(r, work, signals, acts))
        for i in acts:
            in_gradient_phase[i] = in_gradient_phase[i] and not rule.accumulates
            if in_gradient_phase[i]:
                signals[i] = signals[i]._replace(gradient=signals[i].direction)
        slots_after.append(after)
    return [s.direction for s in signals], slots_after


def _loaded_params(work: Work) -> Sequence[jax.Array | None]:
    if work.params is None:
        return [None] * len(work.updates)
    return [_widen(p, real_dtype(u.dtype)) for p, u in zip(work.params, work.updates, strict=True)]


def _per_leaf(r: int, work: Work, signals: list[Signal], acts: list[int]) -> dict[int, SimpleNamespace]:
    """The coefficients of a rule for each leaf it acts on, in the leaf's dtype; cast once and not once per leaf."""
    rule = work.rules[r]
    dtypes = {i: real_dtype(signals[i].direction.dtype) for i in acts}
    cast: dict[int, SimpleNamespace] = {}
    for group in work.groups:
        if group.members[r]:
            of_dtype = {dtype: _cast(group.coefficients[r], dtype) for dtype in {dtypes[i] for i in group.leaves}}
            cast |= {i: of_dtype[dtypes[i]] for i in group.leaves}
    if rule.scope is None or not acts:
        return {i: cast[i] for i in acts}
    if rule.scope == "leaf":
        measured = {i: rule.measure([signals[i].direction]) for i in acts}
    else:
        measured = dict.fromkeys(acts, rule.measure([signals[i].direction for i in acts]))
    return {i: _cast(rule.settle(cast[i], measured[i].astype(dtypes[i])), dtypes[i]) for i in acts}


def _map_leaves(
    rule: Maths,
    signals: list[Signal],
    slots: dict[str, list[jax.Array]],
    params: Sequence[jax.Array | None],
    coefficients: dict[int, SimpleNamespace],
) -> dict[str, list[jax.Array]]:
    """Change the signals of the leaves that have coefficients, and return the slots after."""
    after = {slot: list(arrays) for slot, arrays in slots.items()}
    for i, c in coefficients.items():
        dtype = real_dtype(signals[i].direction.dtype)
        loaded = SimpleNamespace(**{slot: _widen(arrays[i], dtype) for slot, arrays in slots.items()})
        signals[i], computed = rule.apply(signals[i], loaded, params[i], c)
        for slot, arrays in after.items():
            arrays[i] = computed[slot].astype(arrays[i].dtype)
    return after


def _map_tree(
    rule: Maths, signals: list[Signal], acts: list[int], state: Any, params: Sequence[jax.Array | None], work: Work
) -> Any:
    """Change the signals of the leaves that a rule acts on, which maps whole trees, and return its state after."""

    def tree(leaves: Sequence[Any]) -> Any:
        kept: list[Any] = [None] * len(signals)
        for i in acts:
            kept[i] = leaves[i]
        return work.treedef.unflatten(kept)

    trees = Trees(
        tree(work.updates),
        tree([s.gradient for s in signals]),
        tree([s.direction for s in signals]),
        None if work.params is None else tree(params),
        work.extra,
    )
    updates, after = rule.apply_tree(trees, state)
    directions = work.treedef.flatten_up_to(updates)
    for i in acts:
        signals[i] = signals[i]._replace(direction=directions[i].astype(signals[i].direction.dtype))
    return after


def _widen(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, dtype))


def _cast(coefficients: dict[str, jax.Array], dtype: jnp.dtype) -> SimpleNamespace:
    return SimpleNamespace(**{name: value.astype(dtype) for name, value in coefficients.items()})
