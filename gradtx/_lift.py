"""From one array to trees, and from rules to a state: written once for every rule and every chain."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx import _checks
from gradtx._checks import Layout
from gradtx._executors import Work, reference
from gradtx._maths import Maths
from gradtx._numerics import compute_dtype, is_complex
from gradtx._signal import Weights
from gradtx._state import ChainState

Scalars = dict[str, jax.Array]
Hyperparams = dict[str, Scalars]


class Lifted:
    """Named rules that act on trees. What ``init`` and ``update`` of a rule or a chain do."""

    def __init__(self, rules: Sequence[Maths]):
        self.rules = tuple(rules)
        self.names = unique_names(self.rules)
        self.layout = _layout(self.rules, self.names)

    def init(self, params: Any) -> ChainState:
        """The state before the first step."""
        _checks.check_order(self.rules, self.names)
        leaves, treedef = _checks.named_leaves(params, "parameters", self.rules, self.names)
        arrays = [jnp.asarray(leaf, compute_dtype(leaf)) for _, leaf in leaves]
        dtype = compute_dtype(*(x.real for x in arrays))
        count = jnp.zeros((), jnp.int32)
        slots = {}
        for name, rule in self._named():
            on_leaves = [_stored(rule.slots(x), rule.state_dtype) for x in arrays]
            slots[name] = {
                slot: treedef.unflatten([own[slot] for own in on_leaves]) for slot in self.layout.leaf_slots(name)
            }
            slots[name] |= {slot: jnp.asarray(value, dtype) for slot, value in rule.scalars().items()}
            if rule.whole:
                slots[name]["state"] = rule.init_tree(treedef.unflatten(arrays))
        return ChainState(count, self._hyperparams(count, dtype, None), _nonempty(slots))

    def update(self, updates: Any, state: ChainState, params: Any, extra: dict[str, Any]) -> tuple[Any, ChainState]:
        """One step: updates in the dtypes of those that came in, and the next state."""
        leaves, treedef = _checks.named_leaves(updates, "updates", self.rules, self.names)
        _checks.check_state(state, self.layout, treedef, leaves)
        param_leaves = _checks.check_params(params, treedef, leaves, self.rules, self.names)
        slots = [self._slots_of(name, rule, state, treedef) for name, rule in self._named()]
        hyperparams = self._hyperparams(state.count, None, state.hyperparams)
        coefficients, scalars = self._tick(hyperparams, state)

        together = [[leaf for _, leaf in leaves], *([] if param_leaves is None else [param_leaves])]
        for rule, own in zip(self.rules, slots, strict=True):
            together += [] if rule.whole else own.values()
        widest = [compute_dtype(*same_leaf) for same_leaf in zip(*together, strict=True)]
        arrays = [jnp.asarray(leaf, dtype) for (_, leaf), dtype in zip(leaves, widest, strict=True)]

        directions, slots = reference(Work(self.rules, coefficients, arrays, slots, param_leaves, treedef, extra))

        after = {}
        for name, rule, own, numbers in zip(self.names, self.rules, slots, scalars, strict=True):
            trees = {"state": own} if rule.whole else {slot: treedef.unflatten(xs) for slot, xs in own.items()}
            after[name] = trees | numbers
        out = [u.astype(jnp.result_type(leaf)) for u, (_, leaf) in zip(directions, leaves, strict=True)]
        count = jnp.asarray(optax.safe_increment(state.count))
        return treedef.unflatten(out), ChainState(count, hyperparams, _nonempty(after))

    def _named(self) -> Iterable[tuple[str, Maths]]:
        return zip(self.names, self.rules, strict=True)

    def _hyperparams(self, count: jax.Array, dtype: Any, held: Hyperparams | None) -> Hyperparams:
        """This step's hyperparameters: scheduled ones from their schedules, the others as the state holds them."""
        now: Hyperparams = {}
        for name, rule in self._named():
            now[name] = {}
            for own, value in rule.hyperparameters().items():
                old = None if held is None else jnp.asarray(held[name][own])
                if callable(value):
                    value = value(count)
                elif old is not None:
                    value = old
                now[name][own] = _scalar(value, dtype if old is None else old.dtype, name, own)
        return _nonempty(now)

    def _tick(
        self, hyperparams: Hyperparams, state: ChainState
    ) -> tuple[list[dict[str, jax.Array]], list[dict[str, Any]]]:
        """The scalar work of a step: each rule's coefficients and its scalar slots, weights passed along."""
        one = jnp.ones((), compute_dtype(*jax.tree.leaves(state.hyperparams)))
        weights = Weights(one, one)
        coefficients, scalars = [], []
        for name, rule in self._named():
            held = {slot: state.slots[name][slot] for slot in rule.scalars()}
            h = SimpleNamespace(**hyperparams.get(name, {}))
            tick = rule.tick(h, SimpleNamespace(**held), weights, state.count)
            weights = tick.weights
            coefficients.append(tick.coefficients)
            scalars.append({slot: tick.scalars[slot].astype(old.dtype) for slot, old in held.items()})
        return coefficients, scalars

    def _slots_of(self, name: str, rule: Maths, state: ChainState, treedef: Any) -> Any:
        """What an executor gets: {slot: one array per leaf}, or the state of a rule that maps whole trees."""
        if rule.whole:
            return state.slots[name]["state"]
        return {slot: treedef.flatten_up_to(state.slots[name][slot]) for slot in self.layout.leaf_slots(name)}


def unique_names(rules: Iterable[Maths]) -> tuple[str, ...]:
    """A name for each rule: the given one, or its label, then label_1, label_2, ..."""
    rules = list(rules)
    given = Counter(rule.name for rule in rules if rule.name is not None)
    for name, times in given.items():
        if times > 1:
            raise ValueError(f"gradtx: {times} rules of one chain are named {name!r}; give each its own name.")
    names: list[str] = []
    for rule in rules:
        candidates = itertools.chain([rule.label], (f"{rule.label}_{i}" for i in itertools.count(1)))
        names.append(rule.name or next(name for name in candidates if name not in given and name not in names))
    return tuple(names)


def _layout(rules: Sequence[Maths], names: Sequence[str]) -> Layout:
    hyperparams, slots = {}, {}
    for name, rule in zip(names, rules, strict=True):
        hyperparams[name] = dict.fromkeys(rule.hyperparameters(), "scalar")
        on_leaves = jax.eval_shape(rule.slots, jax.ShapeDtypeStruct((), jnp.complex64))
        slots[name] = {slot: "leaf" if is_complex(x.dtype) else "real leaf" for slot, x in on_leaves.items()}
        slots[name] |= dict.fromkeys(rule.scalars(), "scalar")
        slots[name] |= {"state": "whole"} if rule.whole else {}
    return Layout(_nonempty(hyperparams), _nonempty(slots))


def _stored(slots: Scalars, dtype: str | None) -> Scalars:
    if dtype is None:
        return slots
    return {slot: x if is_complex(x.dtype) else x.astype(dtype) for slot, x in slots.items()}


def _scalar(value: Any, dtype: Any, name: str, own: str) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(
            f"gradtx: hyperparameter {name}.{own} has shape {jnp.shape(value)}; it must be a scalar. To try several "
            "values at once, use jax.vmap; for one value per leaf, use one chain per group of leaves."
        )
    return jnp.asarray(value, dtype)


def _nonempty(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: own for name, own in tree.items() if own}
