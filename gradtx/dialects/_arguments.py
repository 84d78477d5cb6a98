"""The meaning of frameworks' arguments: a 0 that turns a rule off, one-element arrays, names that are not here."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx.optimizers._parts import derived
from gradtx.rules.base import Hyper


def is_zero(value: Hyper) -> bool:
    """True if an argument is the number 0, which turns a rule off; arrays and schedules never are."""
    return isinstance(value, int | float) and value == 0


def scalar(value: Any) -> Any:
    """An array of one element as a scalar array; all else as it is."""
    return value.reshape(()) if isinstance(value, np.ndarray | jax.Array) and value.size == 1 else value


def steps(count: Any) -> jax.Array:
    """The count of steps as a float, which strict promotion of dtypes lets into arithmetic."""
    return jnp.asarray(count, float)


def falling_rate(rate: Hyper) -> Hyper:
    """Adafactor's learning rate, at most 1/√t in step t, as a schedule."""

    def schedule(count: jax.Array) -> jax.Array:
        return jnp.minimum(rate(count) if callable(rate) else rate, (steps(count) + 1) ** -0.5)

    return schedule


def lion_mixture(b1: Hyper, b2: Hyper, state_dtype: Any = None) -> Chain:
    """β₁m + (1−β₁)g with the m of before, whose decay is β₂; one of 0 holds the last gradient."""
    if is_zero(b2):
        return chain(rules.extrapolate(derived(lambda b1: -b1, b1), state_dtype=state_dtype))
    mixture = rules.quasi_hyperbolic(derived(lambda b1, b2: b1 / b2, b1, b2))
    return chain(rules.momentum(b2, state_dtype=state_dtype), mixture)


def missing(framework: str, name: str, here: list[str], instead: dict[str, str]) -> NoReturn:
    """The error of a name that a dialect does not have, with what to use instead.

    Raises:
        AttributeError: always.
    """
    if name.lower() in here:
        advice = f". It is a function here: {name.lower()}"
    elif name in instead or name.lower() in instead:
        advice = f": {instead.get(name, instead.get(name.lower()))}"
    else:
        advice = ""
    raise AttributeError(f"gradtx.dialects.{framework} has no {name!r}{advice}", name=name)


def refuse(what: str, unknown: dict[str, Any]) -> None:
    """Refuse arguments that no signature names.

    Raises:
        TypeError: for the first of them.
    """
    for name in unknown:
        raise TypeError(f"{what} got an unexpected keyword argument {name!r}")
