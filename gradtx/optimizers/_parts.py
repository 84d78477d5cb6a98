"""Parts of recipes: hyperparameters made of others, and weight decay that may be none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradtx._core.limits import number
from gradtx._core.selectors import Select
from gradtx.rules import add_decayed_weights
from gradtx.rules.base import Hyper, Rule


def derived(formula: Callable[..., Any], *values: Hyper) -> Hyper:
    """A hyperparameter computed from others: a number from numbers, and a schedule if one of them is a schedule.

    The formula stands in the optimizer, and calls its numbers as that calls its arguments, for the error of what is no
    number. A division by 0 is infinite, for the rule to refuse.
    """
    names, optimizer = inspect.signature(formula).parameters, formula.__qualname__.partition(".")[0]
    values = tuple(_number((optimizer, name), value) for name, value in zip(names, values, strict=True))
    if all(isinstance(value, float) for value in values):
        with np.errstate(all="ignore"):
            return float(formula(*np.array(values, np.float64)))
    if not any(callable(value) for value in values):
        return formula(*values)

    def schedule(count: jax.Array) -> Any:
        return formula(*(value(count) if callable(value) else value for value in values))

    return schedule


def _number(what: tuple[str, str], value: Any) -> Any:
    """A number as a float; arrays of jax and schedules as they are."""
    if callable(value) or isinstance(value, jax.Array):
        return value
    return number(*what, value, ", a scalar array or a schedule", infinite=True)


def decoupled(weight_decay: Hyper, decay_mask: Select) -> tuple[Rule, ...]:
    """Weight decay as a rule before the learning rate; none for a rate of 0."""
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return ()
    return (add_decayed_weights(weight_decay, where=decay_mask),)
