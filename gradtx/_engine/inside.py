"""A chain inside of a rule that scales: its rules run in the pass of that one, as if they were one rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._core import methods
from gradtx._core.contract import AbstractRule, Arrays, Terms, Trees
from gradtx._core.counts import incremented
from gradtx._core.signal import Signal
from gradtx._core.state import ChainState
from gradtx._engine.fuse import Lanes
from gradtx._engine.layout import nonempty
from gradtx._engine.transformation import Transformation


class Inside(NamedTuple):
    """A chain of rules that map one array each, all of them all leaves.

    What has to do with rule ``r`` has a name that begins with ``r.``: its slots, and its coefficients.
    """

    tx: Transformation[ChainState]

    @property
    def fits(self) -> bool:
        """True if it is such a chain, whose slots are stored as arrays like the parameters."""
        return all(map(_is_plain, self.tx.rules))

    @property
    def is_pure(self) -> bool:
        """True if nothing in it has to be called outside of a trace, as a schedule in plain Python or a predicate."""
        rules = self.tx.rules
        return all(rule.where is None and not any(map(callable, rule.hyperparameters().values())) for rule in rules)

    def slots(self, state: ChainState) -> dict[str, Any]:
        """The slots with one array for each leaf, each a tree."""
        return {key: state.slots[rule][slot] for key, rule, slot in self._keys()}

    def with_slots(self, state: ChainState, slots: Mapping[str, Any]) -> ChainState:
        """The state with these slots."""
        after = {rule: dict(held) for rule, held in state.slots.items()}
        for key, rule, slot in self._keys():
            after[rule][slot] = slots[key]
        return state._replace(slots=after)

    def _keys(self) -> list[tuple[str, str, str]]:
        names, layout = self.tx.names, self.tx._engine.layout
        return [(f"{r}.{slot}", name, slot) for r, name in enumerate(names) for slot in layout.leaf_slots(name)]

    def ticked(self, trees: Trees, state: ChainState) -> tuple[Arrays, ChainState]:
        """The coefficients of a step, and the state after it but for the slots of leaves."""
        engine = self.tx._engine
        engine.layout.read(state, engine.inputs(trees.direction, "updates", trees.params))
        all_act = (True,) * len(engine.rules)
        scalars = engine.scalars.of_step(state, [all_act])
        given = enumerate(scalars.coefficients[all_act])
        slots = {name: state.slots.get(name, {}) | own for name, own in zip(engine.names, scalars.slots, strict=True)}
        after = engine.state_type(incremented(state.count), scalars.hyperparams, nonempty(slots))
        return {f"{r}.{name}": x for r, own in given for name, x in own.items()}, after

    @property
    def multiplies(self) -> bool:
        """True if its rules but multiply all leaves by one number, and know from c and g what they make of c·g."""
        rules = self.tx.rules
        return all(one.multiplies and one.scope == "tree" and one.takes_factors and one.where is None for one in rules)

    def terms(self, lanes: Any) -> Terms:
        """The terms of rules that multiply."""
        return {f"{r}.{name}": x for r, rule in enumerate(self.tx.rules) for name, x in rule.terms(lanes).items()}

    def factor(self, trees: Trees, state: ChainState, factor: jax.Array) -> tuple[jax.Array, ChainState]:
        """The product of a factor and those of rules that multiply behind it, and the state after the step."""
        given, after = self.ticked(trees._replace(direction=trees.gradient), state)
        slots, before = {}, trees.factors
        if before is None:
            before = jax.tree.map(lambda x: jnp.ones((), factor.dtype), trees.gradient)
        for r, (name, rule) in enumerate(zip(self.tx.names, self.tx.rules, strict=True)):
            factors = jax.tree.map(lambda x, factor=factor: x * factor.astype(x.dtype), before)
            own = trees._replace(coefficients=_of(r, given), numbers=_of(r, trees.numbers), factors=factors)
            one, tree = methods.tree_applied(rule, own, state.slots[name]["state"])
            factor, slots[name] = factor * one.astype(factor.dtype), {"state": tree}
        return factor, after._replace(slots=slots)

    def applied(self, direction: jax.Array, slots: Arrays, param: Any, c: Arrays) -> tuple[jax.Array, Arrays]:
        """The direction after the chain, and its slots, from those before, for one array."""
        lanes, after = Lanes(Signal(direction, direction)), {}
        for r, rule in enumerate(self.tx._engine.plain_rules()):
            lanes, own = lanes.through(rule, _of(r, slots), param, _of(r, c))
            after |= {f"{r}.{slot}": x for slot, x in own.items()}
        return lanes.signal.direction, after


def _is_plain(rule: AbstractRule) -> bool:
    maps_one = not (rule.maps_trees or rule.scope or rule.observes or rule.freezes or rule.takes_anything)
    return maps_one and rule.where is None and rule.state_dtype is None


def _of(r: int, values: Arrays) -> Arrays:
    """The values of a rule, by their names there."""
    return {key.removeprefix(f"{r}."): x for key, x in values.items() if key.startswith(f"{r}.")}
