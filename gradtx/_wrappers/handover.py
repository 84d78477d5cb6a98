"""The first moment that one phase of a ``switch`` hands over to the next: where a chain has it, read and written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._core.codecs import decoded, stored_as
from gradtx._core.contract import FIRST_MOMENTS, AbstractRule
from gradtx._core.declarations import alternatives, those_of_gradtx
from gradtx._core.numerics import compute_dtype, real_dtype, safe_divide
from gradtx._core.state import ChainState
from gradtx._engine.backends import current
from gradtx._engine.layout import have_values
from gradtx._engine.transformation import Transformation

Hyperparams = dict[str, dict[str, jax.Array]]


class Moment(NamedTuple):
    """A first moment as it is handed over.

    Attributes:
        tree: the slot.
        weight: the total weight of the gradients in it.
        steady: the weight it would have after infinitely many steps.
        gain: the factor by which its chain scales the gradients before.
        debiased: whether its chain debiases it.
    """

    tree: Any
    weight: jax.Array
    steady: jax.Array
    gain: jax.Array
    debiased: jax.Array


class Place(NamedTuple):
    """The place of a first moment in a chain: its rule and slot, the rules before it, and whether it is debiased."""

    name: str
    rule: AbstractRule
    slot: str
    before: Sequence[tuple[str, AbstractRule]]
    debiased: bool

    def steady(self, hyperparams: Hyperparams) -> jax.Array:
        """The weight after infinitely many steps."""
        return jnp.asarray(self.rule.steady_weight(_named(self.name, self.rule, hyperparams)))

    def gain(self, hyperparams: Hyperparams) -> jax.Array:
        """The factor by which the rules before it scale the gradient."""
        factors = [rule.scales_by(_named(name, rule, hyperparams)) for name, rule in self.before]
        return jnp.asarray(math.prod(factors))

    def changes(self) -> list[AbstractRule]:
        """The rules before it that make something else of the gradient, which an average of theirs is not one of."""
        return [rule for _, rule in self.before if rule.normalizes or rule.second_moment == "uses"]


def _named(name: str, rule: AbstractRule, hyperparams: Hyperparams) -> Any:
    return rule.hyperparameters_from(hyperparams.get(name, {}))


def _slot_of(rule: AbstractRule) -> str | None:
    """The slot that holds a first moment, if a rule has one."""
    return next((slot for slot, kind in rule.holds.items() if kind in FIRST_MOMENTS), None)


def place_of(tx: Transformation[Any]) -> Place:
    """The one first moment of a chain."""
    named = list(zip(tx.names, tx.rules, strict=True))
    slots = {i: slot for i, (_, rule) in enumerate(named) if (slot := _slot_of(rule)) is not None}
    if len(slots) != 1:
        has = "has none" if not slots else f"has {len(slots)}: {', '.join(repr(tx.names[i]) for i in slots)}"
        holders = those_of_gradtx(lambda rule: not set(FIRST_MOMENTS).isdisjoint(rule.holds.values()))
        raise ValueError(
            f"switch: carry='momentum' hands over one first moment ({alternatives(holders)}, or of a rule that says so "
            f"by holds), and the chain of rules {', '.join(map(repr, tx.names)) or '(none)'} {has}. Change the chain "
            "(sgd, for example, takes momentum=0.9), or start afresh with carry='reset'."
        )
    ((i, slot),) = slots.items()
    name, rule = named[i]
    scaling = [*named[: i + 1], *((label, one) for label, one in named[i:] if one.debiases)]
    restricted = [label for label, one in scaling if one.where is not None]
    if restricted:
        raise ValueError(
            f"switch: carry='momentum' hands over the first moment of all leaves, and rule {restricted[0]!r} is for "
            "some only. Put a switch in each part of a partition, or start afresh with carry='reset'."
        )
    debiased = any(rule.debiases for _, rule in named[i:])
    return Place(name, rule, slot, named[:i], debiased)


def read(tx: Transformation[Any], state: ChainState) -> Moment:
    """The first moment that a chain leaves behind."""
    place, h = place_of(tx), state.hyperparams
    slots, steady = state.slots[place.name], place.steady(h)
    weight = slots["weight"] if "weight" in place.rule.scalars() else steady
    return Moment(decoded(slots[place.slot]), weight, steady, place.gain(h), jnp.asarray(place.debiased))


def written(tx: Transformation[Any], state: ChainState, moment: Moment) -> ChainState:
    """The state of a chain that begins with this first moment."""
    place, h = place_of(tx), _this_step(tx, state)
    unbias = moment.debiased & (not place.debiased)
    factor = safe_divide(place.steady(h), jnp.where(unbias, moment.weight, moment.steady))
    tree = scaled(factor * safe_divide(place.gain(h), moment.gain), moment.tree)
    slots = state.slots[place.name]
    carried = {place.slot: tree} | ({"weight": factor * moment.weight} if "weight" in place.rule.scalars() else {})
    kept = {slot: slots[slot] for slot in slots if slot not in carried}
    return state._replace(slots=state.slots | {place.name: jax.tree.map(stored_as, kept | carried, slots)})


def _this_step(tx: Transformation[Any], state: ChainState) -> Hyperparams:
    """The hyperparameters that the next update will use."""
    return {name: {} for name in tx.names} | tx._engine.scalars.hyperparams(state.count, None, state.hyperparams)


def scaled(factor: jax.Array, tree: Any) -> Any:
    """Each leaf times a real scalar, in the leaf's dtype, float32 at least."""
    leaves, treedef = jax.tree.flatten(tree)
    executor: Any = current(traced=not have_values(leaves))
    after, _ = executor.map_leaves(_scaled, [(x,) for x in leaves], [factor], [], {})
    return treedef.unflatten([x for (x,) in after])


def _scaled(x: jax.Array, factor: jax.Array) -> tuple[jax.Array]:
    wide = compute_dtype(x)
    return ((factor.astype(real_dtype(wide)) * x.astype(wide)).astype(x.dtype),)
