"""The data that travels along a chain: the signal of one leaf, and the weights of its averages."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class Signal(NamedTuple):
    """The three lanes of one parameter leaf, all of the leaf's shape.

    The review article writes every first-order method as ``w ← w − η·m/√V`` with m and V read off the
    gradients so far; so a rule sees the gradient, m and V side by side rather than one value.

    Attributes:
        gradient: g, what accumulators such as ``rms`` read. Equal to the direction until the first accumulator.
        direction: u, what becomes the update (the numerator). Starts as the incoming updates.
        second_moment: v, what the direction will be divided by the root of; None while there is none. Real.
    """

    gradient: jax.Array
    direction: jax.Array
    second_moment: Any = None  # jax.Array or None; the chain sees to it that rules that need one find one


class Weights(NamedTuple):
    """The total weight of the averages that two lanes hold, one scalar each for the whole tree.

    An average that starts at zero holds less than it should: after t steps, m of ``momentum(β)`` has the weights
    (1−β)βᵏ of t gradients, 1 − βᵗ in all. Rules that average carry that total here, and ``debias`` divides by it.
    It needs no β, no step count and no cancelling ``1 − β**t``, and it is exact for decays that vary.

    Attributes:
        direction: w_u, 1 at the start of a chain.
        second_moment: w_v, 1 at the start of a chain.
    """

    direction: jax.Array
    second_moment: jax.Array
