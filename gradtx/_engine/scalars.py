"""The scalars of a step: this step's hyperparameters, and what rules compute of them once for all leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from gradtx._core import methods
from gradtx._core.blank import is_blank, looks_ahead
from gradtx._core.contract import AbstractRule, Hyperparameters, Tick
from gradtx._core.control import only_types
from gradtx._core.counts import incremented
from gradtx._core.limits import Limits, checked, scheduled
from gradtx._core.numerics import complement, compute_dtype, residual_of, split
from gradtx._core.signal import Weights
from gradtx._core.state import ChainState, Hyperparameter
from gradtx._engine.inputs import Members
from gradtx._engine.layout import nonempty

Values = dict[str, jax.Array]
"""Scalars by their names."""

Hyperparams = dict[str, Values]
"""Hyperparameters, and the residuals of those that have one, by the name of the rule."""

Ahead = Mapping[str, Values]
"""Hyperparameters of the next step, ``{rule: {name: scalar}}``."""

NOTHING: Ahead = MappingProxyType({})


class StepScalars(NamedTuple):
    """The scalars of one step.

    Attributes:
        hyperparams: this step's.
        coefficients: per rule, what its ``tick`` gave, by the rules that act on a leaf.
        slots: per rule, its scalar slots after the step.
    """

    hyperparams: Hyperparams
    coefficients: dict[Members, list[Values]]
    slots: list[Values]


class Scalars:
    """The scalar work of named rules."""

    def __init__(self, rules: Sequence[AbstractRule], names: Sequence[str]):
        self.rules, self.names = tuple(rules), tuple(names)

    def _named(self) -> Iterable[tuple[str, AbstractRule]]:
        return zip(self.names, self.rules, strict=True)

    def declared(self) -> Iterable[tuple[str, Hyperparameter]]:
        """The hyperparameters by their full names: their limits, and whether a schedule gives them."""
        for name, rule in self._named():
            limits = rule.limits()
            for key, value in rule.hyperparameters().items():
                yield f"{name}.{key}", Hyperparameter(limits.get(key, Limits()), callable(value))

    def hyperparams(self, count: jax.Array, dtype: Any, held: Hyperparams | None) -> Hyperparams:
        """The hyperparameters of this step: scheduled ones from their schedules, the others as the state holds them.

        Args:
            count: steps taken before this one.
            dtype: of the scalars, where no state holds them yet.
            held: those in the state; None before the first step.
        """
        now: Hyperparams = {}
        for name, rule in self._named():
            now[name] = {}
            for key, value in rule.hyperparameters().items():
                old = None if held is None else jnp.asarray(held[name][key])
                keeps_residual = key in rule.complements() and (held is None or residual_of(key) in held[name])
                known = is_blank(value) or not callable(value) or only_types.get()
                if held is not None and old is not None and known:
                    now[name][key] = old
                    if keeps_residual:
                        now[name][residual_of(key)] = jnp.asarray(held[name][residual_of(key)])
                    continue
                if callable(value):
                    value = scheduled(value, count, f"{name}.{key}")
                kept = dtype if old is None else old.dtype
                now[name][key], residual = split(_scalar(value, name, key, rule, kept), kept)
                if keeps_residual:
                    now[name][residual_of(key)] = residual
        return nonempty(now)

    def now(self, state: Any) -> tuple[Any, Ahead]:
        """The state with this step's hyperparameters in it, and those of the next step that rules ask for."""
        hyperparams = self.hyperparams(jnp.asarray(state.count), None, state.hyperparams)
        ahead: dict[str, Values] = {}
        for name, rule in self._named():
            asked = looks_ahead(type(rule))
            for key, value in rule.hyperparameters().items():
                if callable(value) and key in asked:
                    dtype = hyperparams[name][key].dtype
                    upcoming = scheduled(value, incremented(state.count), f"{name}.{key}")
                    scalar, residual = split(_scalar(upcoming, name, key, rule, dtype), dtype)
                    ahead.setdefault(name, {})[key] = scalar
                    if key in rule.complements():
                        exact = {key: scalar, residual_of(key): residual}
                        ahead[name][rule.complements()[key]] = complement(exact, key)
        return state._replace(hyperparams=hyperparams), ahead

    def of_step(self, state: ChainState, groups: Iterable[Members], ahead: Ahead = NOTHING) -> StepScalars:
        """The scalar work of a step, weights passed along: coefficients for each group of leaves, and scalar slots.

        Args:
            state: before the step.
            groups: of leaves, by the rules that act on them.
            ahead: see ``Ahead``; where schedules are known, rules call them.

        Raises:
            ValueError: for an average that two groups of leaves need with different weights.
        """
        hyperparams = self.hyperparams(state.count, None, state.hyperparams)
        one = jnp.ones((), compute_dtype(*jax.tree.leaves(state.hyperparams)))
        weights = dict.fromkeys(groups, Weights(one, one))
        coefficients: dict[Members, list[Values]] = {members: [] for members in weights}
        slots = []
        for r, (name, rule) in enumerate(self._named()):
            before = {slot: state.slots[name][slot] for slot in rule.scalars()}
            h = Hyperparameters(**_with_complements(hyperparams.get(name, {}), rule))
            h.ahead = ahead.get(name, {})
            ticks: dict[tuple[int, int], Tick] = {}  # by the incoming weights: what they are made of tells them apart
            for members in weights:
                if not members[r]:
                    coefficients[members].append({})
                    continue
                key = (id(weights[members].direction), id(weights[members].second_moment))
                if key not in ticks:
                    ticks[key] = methods.ticked(rule, h, SimpleNamespace(**before), weights[members], state.count)
                coefficients[members].append(ticks[key].coefficients)
                weights[members] = ticks[key].weights
            if before and rule.second_moment != "makes" and len({direction for direction, _ in ticks}) > 1:
                raise ValueError(
                    f"gradtx: rule {name!r} averages directions of different weights, since a rule before it averages "
                    "on some leaves only. Give each group of leaves a rule of its own (see where), or a chain of its "
                    "own (see partition)."
                )
            last = next(iter(ticks.values()), None)
            slots.append({k: x if last is None else last.scalars[k].astype(x.dtype) for k, x in before.items()})
        return StepScalars(hyperparams, coefficients, slots)


def _with_complements(values: Values, rule: AbstractRule) -> Values:
    """The hyperparameters of a rule, and the complements of those that are below 1."""
    given = {name: values[name] for name in rule.hyperparameters()}
    return given | {named: complement(values, name) for name, named in rule.complements().items()}


def _scalar(value: Any, rule: str, name: str, declared: AbstractRule, dtype: Any) -> Any:
    """A hyperparameter, within its limits where the value is known; then it is a copy, in float64."""
    what = f"gradtx: hyperparameter {rule}.{name}"
    known = not isinstance(value, jax.core.Tracer)
    limits = declared.limits().get(name, Limits())
    number = checked(what, value, limits, dtype) if known else jnp.asarray(value)
    if number.shape != ():
        raise ValueError(
            f"{what} has shape {number.shape}; it must be a scalar. To try several values at once, use jax.vmap; for "
            "one value per leaf, use one chain per group of leaves."
        )
    return number
