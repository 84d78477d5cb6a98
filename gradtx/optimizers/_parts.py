"""Parts of recipes: hyperparameters made of others, and weight decay that may be none."""

from __future__ import annotations

from typing import Any

import jax

from gradtx._core.selectors import Select
from gradtx.rules import add_decayed_weights
from gradtx.rules.base import Hyper, Rule


def derived(function: Any, *values: Hyper) -> Hyper:
    """A hyperparameter computed from others: a number from numbers, and a schedule if one of them is a schedule."""
    if not any(callable(value) for value in values):
        return function(*values)

    def schedule(count: jax.Array) -> Any:
        return function(*(value(count) if callable(value) else value for value in values))

    return schedule


def decoupled(weight_decay: Hyper, decay_mask: Select) -> tuple[Rule, ...]:
    """Weight decay as a rule before the learning rate; none for a rate of 0."""
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return ()
    return (add_decayed_weights(weight_decay, where=decay_mask),)
