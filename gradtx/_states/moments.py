"""Moments of the gradient as other frameworks hold them, put into the slots of a chain."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradtx._chain import Chain
from gradtx._core.codecs import is_encoded, stored_as
from gradtx._core.contract import AbstractRule, MomentKind
from gradtx._core.numerics import is_complex
from gradtx._core.state import ChainState
from gradtx._core.verification import depends_on_count
from gradtx._engine.inputs import FlatTree
from gradtx.rules.base import Rule


class Maximum(enum.StrEnum):
    """The second moments that a framework takes the maximum of."""

    DEBIASED = "debiased"
    RAW = "raw"


def ported(
    who: str,
    tx: Chain | Rule,
    params: Any,
    offers: Sequence[tuple[MomentKind, Any]],
    counts: set[int],
    count: int | None,
    maximum: Maximum,
    fresh: bool = False,
) -> ChainState:
    """The state of a chain with these moments, each taken by the next rule that holds such a one."""
    if not isinstance(tx, Chain | Rule):
        raise TypeError(f"{who}: tx must be a chain or a rule, found {type(tx).__name__}; give the chain inside it")
    engine = tx._engine
    start = engine.init(params)
    if fresh and not _steps(who, tx, counts, count):
        return start
    unused, unfed, moments = list(offers), [], {}
    for name, rule in zip(engine.names, engine.rules, strict=True):
        if not jax.tree.leaves(start.slots.get(name)):
            continue
        places = {slot: _first_of(kind, unused) for slot, kind in rule.holds.items()}
        if not places or None in places.values():
            unfed.append(name)
            continue
        if MomentKind.MAXIMUM in rule.holds.values():
            _check_maximum(who, tx.rules, rule, maximum)
        moments[name] = {slot: unused[place] for slot, place in places.items() if place is not None}
        unused = [offer for i, offer in enumerate(unused) if i not in places.values()]
    if unfed or unused:
        raise ValueError(
            f"{who}: tx is not the optimizer that made this state."
            + (f" It has nothing for the rules {', '.join(unfed)}." if unfed else "")
            + (f" It has, and no rule takes: {', '.join(kind for kind, _ in unused)}." if unused else "")
        )
    state = engine.after(start, params, _steps(who, tx, counts, count))
    flat = FlatTree.of(params, "parameters").checked()
    slots = dict(state.slots)
    for name, rule, acts in zip(engine.names, engine.rules, engine.mask(flat), strict=True):
        h = rule.hyperparameters_from(jax.tree.map(_wide, state.hyperparams.get(name, {})))
        of_rule = {
            slot: (kind, flat.like(tree, f"state for {name}", acts))
            for slot, (kind, tree) in moments.get(name, {}).items()
        }
        for slot, arrays in _from_moments(rule, of_rule, h).items():
            put = _put(who, f"{name}.{slot}")
            filled = jax.tree.map(put, slots[name][slot], flat.unflatten(arrays), is_leaf=is_encoded)
            slots[name] = slots[name] | {slot: filled}
    return state._replace(slots=slots)


def _first_of(kind: str, offers: Sequence[tuple[MomentKind, Any]]) -> int | None:
    """The place of the first moment of a kind."""
    return next((i for i, (offered, _) in enumerate(offers) if offered == kind), None)


def _from_moments(
    rule: AbstractRule, moments: Mapping[str, tuple[MomentKind, list[Any]]], h: Any
) -> dict[str, list[Any]]:
    """The slots of a rule, one array for each leaf, from the moments that another framework holds."""
    columns = {slot: [None if x is None else _wide(x) for x in arrays] for slot, (_, arrays) in moments.items()}
    slots = {kind: slot for slot, (kind, _) in moments.items()}
    if MomentKind.VARIANCE in slots:  # there, a raw moment beside its center
        variance, center = slots[MomentKind.VARIANCE], slots[MomentKind.CENTER]
        pairs = zip(columns[variance], columns[center], strict=True)
        columns[variance] = [
            None if x is None or mean is None else np.maximum(x - np.abs(mean) ** 2, 0) for x, mean in pairs
        ]
    return {slot: [None if x is None else rule.from_moment(slot, x, h) for x in xs] for slot, xs in columns.items()}


def _wide(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _put(who: str, name: str) -> Any:
    """A function that puts a value where a slot is, in its dtype."""

    def put(slot: Any, value: np.ndarray) -> Any:
        if is_encoded(slot):
            return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), stored_as(value, slot), slot)
        if np.iscomplexobj(value) and not is_complex(slot.dtype):
            raise ValueError(f"{who}: {name} is real, and complex in the state that was given")
        return jax.device_put(value.astype(slot.dtype), slot.sharding)

    return put


def _check_maximum(who: str, rules: Sequence[AbstractRule], rule: AbstractRule, maximum: Maximum) -> None:
    """Refuses a maximum of raw second moments where the other side has one of debiased ones, or the reverse."""
    debiases = [i for i, other in enumerate(rules) if other.debiases and not other.holds]
    if debiases and (debiases[0] < rules.index(rule)) != (maximum is Maximum.DEBIASED):
        order = "before" if maximum is Maximum.DEBIASED else "after"
        raise ValueError(
            f"{who}: the maximum there is of the {maximum} second moment, so {rules[debiases[0]].label} must stand "
            f"{order} {rule.label}: see gradtx.dialects."
        )


def _steps(who: str, tx: Chain | Rule, counts: set[int], count: int | None) -> int:
    """The number of steps that were taken: as given, or as counted."""
    if count is not None:
        return count_of(who, "count", count)
    if len(counts) > 1:
        raise ValueError(f"{who}: the counters differ, {sorted(counts)}; say which it is: count=...")
    if counts:
        return counts.pop()
    for rule in counting(tx):
        raise ValueError(f"{who}: there is no counter in this state, and {rule} needs one; say it: count=...")
    return 0


def counting(tx: Chain | Rule) -> list[Rule]:
    """The rules whose steps depend on how many there were."""
    return [rule for rule in tx.rules if depends_on_count(rule)]


def count_of(who: str, what: str, value: Any) -> int:
    """A number of steps."""
    number = as_numpy(value)
    if number.dtype.kind not in "iuf" or number.size != 1 or not number.reshape(()) >= 0 or number % 1:
        raise ValueError(f"{who}: {what} must be a number of steps, 0 or more, found {value!r}")
    return int(number.reshape(()))


def as_numpy(value: Any) -> np.ndarray:
    """A tensor of torch, which need not be installed, or an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    return np.asarray(value)
