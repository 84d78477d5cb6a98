"""The moments and factors that a rule declares, beside what one step of it computes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._chain import chain, seal
from gradtx._core.contract import FIRST_MOMENTS, AbstractRule, Arrays, Named
from gradtx._core.methods import applied, named, numbered, slotted, ticked
from gradtx._core.signal import Signal, Weights
from gradtx._engine.transformation import Transformation
from gradtx.rules.base import Rule
from gradtx.rules.quotient import precondition
from gradtx.testing._compare import check

WEIGHTS = Weights(np.float32(1), np.float32(1))  # pyright: ignore[reportArgumentType] - as good as arrays

SPREAD = np.array([[1e-6, -1e-4], [1e-2, -0.5], [1.0, 2.0]], np.float32)
"""A gradient of elements of many sizes."""


def says_what_it_holds(tx: Transformation[Any]) -> None:
    """moments, their weights and factors are those that the rule declares, for switch and ports to go by"""
    for rule in tx.rules:
        numbers = not any(callable(value) for value in rule.hyperparameters().values())
        says_none = rule.accumulates is False or (rule.maps_trees and not rule.accumulates)
        if says_none and not rule.last and not isinstance(rule, seal):  # what is sealed is a filter by its form
            _check_memory(rule)
        if numbers and not rule.maps_trees and rule.scope is None:
            _check(rule)


class _ones(Rule):
    """A second moment of 1."""

    second_moment = "makes"

    def apply(self, signal, slots, param, c):
        return signal._replace(second_moment=jnp.ones_like(signal.direction.real)), {}


class _shown(Rule):
    """The second moment as the direction."""

    second_moment = "uses"

    def apply(self, signal, slots, param, c):
        v = signal.second_moment
        return signal._replace(direction=v.astype(signal.direction.dtype), second_moment=None), {}


@functools.lru_cache(maxsize=256)
def _check_memory(rule: Any) -> None:
    """A rule that says it sums no gradients gets two, and then zero: it may not go on in their direction.

    It may go against it, and so take back what it added, as one does that adds a difference of gradients.
    """
    tx = chain(*([_ones()] if rule.second_moment in ("edits", "uses") else []), rule)
    if rule.second_moment in ("makes", "edits"):
        tx = chain(tx, _shown() if rule.second_moment == "makes" else precondition(0.0))

    @jax.jit
    def last_two(g: Any) -> list[jax.Array]:
        p, state = jnp.zeros_like(SPREAD), tx.init(jnp.zeros_like(SPREAD))
        updates = []
        for gradient in (g, g, 0 * g):
            u, state = tx.update(gradient, state, p, value=jnp.float32(1))
            updates.append(u)
        return updates[1:]

    with_it, after = (
        np.asarray(x) - np.asarray(y) for x, y in zip(last_two(SPREAD), last_two(0 * SPREAD), strict=True)
    )
    going_on = np.vdot(after, with_it)
    check(
        not going_on > 1e-6 * np.vdot(with_it, with_it),
        f"{named(rule)} goes on in the direction of gradients that are past: it averages or sums them, so declare "
        "accumulates = True",
    )


@functools.lru_cache(maxsize=256)
def _check(rule: AbstractRule) -> None:
    h = rule.hyperparameters_from({name: jnp.float32(value) for name, value in rule.hyperparameters().items()})
    first_moments = [slot for slot, kind in rule.holds.items() if kind in FIRST_MOMENTS]
    if first_moments and "weight" in rule.scalars():
        _check_moment(rule, h, first_moments[0])
    if rule.second_moment not in ("edits", "uses"):
        _check_slots(rule, h, first_moments)
    if not rule.slots(jnp.zeros(())) and rule.second_moment is None and not rule.freezes:
        _check_factor(rule, h)


def _check_moment(rule: AbstractRule, h: Named, slot: str) -> None:
    who, steady = named(rule), np.float32(rule.steady_weight(h))
    later = ticked(rule, h, Named(**numbered(rule) | {"weight": jnp.asarray(steady)}), WEIGHTS, jnp.int32(10))
    weight = float(later.scalars["weight"])
    check(
        abs(weight - float(steady)) <= 1e-5 * abs(float(steady)),
        f"{who} declares a steady weight of {steady:.6g}, and a step from there makes it {weight:.6g}",
    )
    _, slots, scalars = _first_step(rule, h, jnp.ones((3, 2)))
    same = np.allclose(slots[slot], float(scalars["weight"]), rtol=1e-5)
    check(same or rule.debiases, f"{who} holds in {slot!r} something else than its weight times a constant gradient")


def _check_slots(rule: AbstractRule, h: Named, first_moments: list[str]) -> None:
    """The slots after a first gradient of 2: it, or its square, times the weight, which is 1 where none is held."""
    who, before = named(rule), slotted(rule, jnp.full((3, 2), 2.0))
    _, slots, scalars = _first_step(rule, h, jnp.full((3, 2), 2.0))
    weight = float(scalars.get("weight", 1.0))
    if "weight" not in rule.scalars() and not rule.debiases:
        for slot in first_moments:
            check(
                np.allclose(slots[slot], 2, rtol=1e-5),
                f"{who} holds in {slot!r} an average whose weight is not 1, and no weight: give it one by scalars, and "
                "carry it on in tick, so that debias knows of it",
            )
    for slot in (slot for slot, kind in rule.holds.items() if kind == "square"):
        check(
            np.allclose(slots[slot], 4 * weight, rtol=1e-5),
            f"{who} declares that {slot!r} holds an average of squares, and {float(slots[slot][0, 0]):.6g} is in it "
            f"after a gradient of 2, with a weight of {weight:.6g}",
        )
    check(
        not (rule.accumulates and slots) or bool(scalars) or any(np.any(slots[slot] != before[slot]) for slot in slots),
        f"{who} declares accumulates = True, and a step leaves its slots as they were: apply returns those after it",
    )


def _check_factor(rule: AbstractRule, h: Named) -> None:
    factor, direction = float(rule.scales_by(h)), _direction(rule, h, SPREAD)
    factors = direction / SPREAD
    linear = bool(np.any(direction)) and np.allclose(factors, factors[0, 0], rtol=1e-5)  # nothing may come later
    if linear and not np.allclose(factors, factor, rtol=1e-5):  # a factor of the leaf's shape cannot be declared
        linear = np.allclose(_direction(rule, h, SPREAD.T) / SPREAD.T, factors[0, 0], rtol=1e-5)
    check(
        np.allclose(factors, factor, rtol=1e-5) if linear else factor == 1,
        f"{named(rule)} declares that it scales by {factor:.6g}, and makes {direction.ravel()} of {SPREAD.ravel()}",
    )
    forgets = np.any(direction) and np.allclose(_direction(rule, h, 1e-3 * SPREAD), direction, rtol=1e-3)
    check(not forgets or rule.normalizes, f"{named(rule)} forgets how large the gradient is: declare normalizes = True")


def _direction(rule: AbstractRule, h: Named, gradient: np.ndarray) -> np.ndarray:
    return np.asarray(_first_step(rule, h, jnp.asarray(gradient))[0])


def _first_step(rule: AbstractRule, h: Named, gradient: jax.Array) -> tuple[jax.Array, Arrays, Arrays]:
    """The direction, the slots and the scalars after the first step of a rule alone."""
    tick = ticked(rule, h, Named(**{name: jnp.float32(x) for name, x in numbered(rule).items()}), WEIGHTS, jnp.int32(0))
    param = jnp.zeros_like(gradient) if rule.needs_params else None
    signal, slots = applied(rule, Signal(gradient, gradient, None), slotted(rule, gradient), param, tick.coefficients)
    return signal.direction, slots, tick.scalars
