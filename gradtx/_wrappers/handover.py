"""The first moment that one phase of a ``switch`` hands over to the next: where a chain has it, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._core.contract import AbstractRule
from gradtx._core.numerics import complement, compute_dtype, real_dtype, safe_divide
from gradtx._core.state import ChainState
from gradtx._engine.transformation import Transformation
from gradtx.rules import damped_trace, debias, momentum, nesterov, scale, scale_by_learning_rate, sign, trace

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
    """Where in a chain the first moment is: its rule and slot, the rules before it, and whether it is debiased."""

    name: str
    rule: AbstractRule
    slot: str
    before: Sequence[tuple[str, AbstractRule]]
    debiased: bool

    def steady(self, hyperparams: Hyperparams) -> jax.Array:
        """The weight after infinitely many steps."""
        h = hyperparams[self.name]
        if isinstance(self.rule, trace | damped_trace):
            return complement({"dampening": 0.0} | h, "dampening") / complement(h, "decay")
        return jnp.ones_like(h["decay"])

    def gain(self, hyperparams: Hyperparams) -> jax.Array:
        """The factor by which the rules before it scale the gradient."""
        gain = jnp.ones_like(hyperparams[self.name]["decay"])
        for name, rule in self.before:
            if isinstance(rule, scale):
                gain = gain * hyperparams[name]["factor"]
            elif isinstance(rule, scale_by_learning_rate):
                gain = -gain * hyperparams[name]["learning_rate"]
        return gain

    def changes(self) -> list[AbstractRule]:
        """The rules before it that make something else of the gradient, which an average of theirs is not one of."""
        return [rule for _, rule in self.before if rule.second_moment is not None or isinstance(rule, sign)]


_SLOTS = {momentum: "m", nesterov: "m", trace: "b", damped_trace: "b"}


def place_of(tx: Transformation) -> Place:
    """The one first moment of a chain."""
    named = list(zip(tx.names, tx.rules, strict=True))
    found = [i for i, (_, rule) in enumerate(named) if isinstance(rule, tuple(_SLOTS))]
    if len(found) != 1:
        has = "has none" if not found else f"has {len(found)}: {', '.join(repr(tx.names[i]) for i in found)}"
        raise ValueError(
            "switch: carry='momentum' hands over one first moment (momentum, nesterov, trace or damped_trace), and the "
            f"chain of rules {', '.join(map(repr, tx.names)) or '(none)'} {has}. Change the chain (sgd, for example, "
            "takes momentum=0.9), or start afresh with carry='reset'."
        )
    (i,) = found
    name, rule = named[i]
    slot = next(slot for kind, slot in _SLOTS.items() if isinstance(rule, kind))
    scaling = [*named[: i + 1], *((its, one) for its, one in named[i:] if isinstance(one, debias))]
    restricted = [own for own, one in scaling if one.where is not None]
    if restricted:
        raise ValueError(
            f"switch: carry='momentum' hands over the first moment of all leaves, and rule {restricted[0]!r} is for "
            "some only. Put a switch in each part of a partition, or start afresh with carry='reset'."
        )
    debiased = any(isinstance(rule, debias | nesterov) for _, rule in named[i:])
    return Place(name, rule, slot, named[:i], debiased)


def read(tx: Transformation, state: ChainState) -> Moment:
    """The first moment that a chain leaves behind."""
    place, h = place_of(tx), state.hyperparams
    slots = state.slots[place.name]
    debiased = jnp.asarray(place.debiased)
    return Moment(slots[place.slot], slots["weight"], place.steady(h), place.gain(h), debiased)


def written(tx: Transformation, state: ChainState, moment: Moment) -> ChainState:
    """The state of a chain that begins with this first moment."""
    place, h = place_of(tx), _this_step(tx, state)
    unbias = moment.debiased & (not place.debiased)
    factor = safe_divide(place.steady(h), jnp.where(unbias, moment.weight, moment.steady))
    tree = scaled(factor * safe_divide(place.gain(h), moment.gain), moment.tree)
    carried = {place.slot: tree, "weight": factor * moment.weight}
    return state._replace(slots=state.slots | {place.name: jax.tree.map(like, carried, state.slots[place.name])})


def _this_step(tx: Transformation, state: ChainState) -> Hyperparams:
    """The hyperparameters that the next update will use."""
    return {name: {} for name in tx.names} | tx._lifted._hyperparams(state.count, None, state.hyperparams)


def like(new: Any, old: Any) -> jax.Array:
    """A number in the dtype of another."""
    return jnp.asarray(new, jnp.asarray(old).dtype)


def scaled(factor: jax.Array, tree: Any) -> Any:
    """Each leaf times a real scalar, in the leaf's dtype, float32 at least."""

    def one(x: jax.Array) -> jax.Array:
        wide = compute_dtype(x)
        return (factor.astype(real_dtype(wide)) * x.astype(wide)).astype(x.dtype)

    return jax.tree.map(one, tree)
