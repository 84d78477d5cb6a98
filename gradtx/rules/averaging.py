"""Rules at the end of a chain that average the parameters."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.limits import integer
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["average_iterates", "lookahead"]


class average_iterates(Rule):
    r"""An average of the iterates, held as an offset: x ← (1−c)x + cz, and the parameters are z + κ(x − z).

    z are the iterates that the chain before it makes, x their average, c its rate. With e = x − z::

        e ← (1−c)(e₋ − u);   u ← u + κe − κ₋e₋      (for a κ that stays (1 − κ(1−c))u − κce₋)

    So there is one more array, no copy of the parameters, and none is read. ``evaluation_point(state, params)`` is x:
    the parameters to evaluate and to keep. With κ = 0 training goes on as without the rule, and x is

    - Polyak's average of all iterates (c = 1/t, the default; averaged SGD, SWA in each step),
    - their exponential average (``rate=1−β``: EMA).

    With κ > 0 the gradient is taken in between, which is the schedule-free method; with its ``learning_rate`` an
    iterate counts by the square of the largest rate so far, as its authors have it.

    Must be last, after the learning rate.

    Args:
        rate: c in [0, 1], a number or a schedule; None: γ/Σγ with weights γ of the iterates.
        pull: κ in [0, 1], where between z (0) and x (1) the parameters are, a number that stays or a schedule. 0; the
            schedule-free method takes 0.9.
        learning_rate: η of the chain, for γ = (the largest η so far)²; None: γ = 1. Only without ``rate``.

    State: ``average_offset`` like the parameters, x − z; with ``learning_rate`` ``largest``, the largest η so far; and
    ``total``, Σγ (scalars). With a schedule of κ also ``pull``, that of the step before.

    Inf and NaN stay in their element, and in its slot from then on.

    Raises:
        ValueError: for ``rate`` and ``learning_rate`` both.

    Source: Polyak & Juditsky (1992); Defazio et al. (2024), "The road less scheduled".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.average_iterates())
    >>> p = jnp.array([0.0])
    >>> state = tx.init(p)
    >>> for g in (-1.0, -2.0, -6.0):  # iterates 1, 3, 9
    ...     p, state = gradtx.step(tx, p, jnp.array([g]), state)
    >>> print(p, gradtx.evaluation_point(state, p).round(4))
    [9.] [4.3333]
    """

    equation = r"e \leftarrow (1-c)(e - u), \quad u \leftarrow u + \kappa e - \kappa_{t-1} e_{t-1}"
    accumulates = True
    last = True
    nonnegative = ("total", "largest", "pull")

    rate: Hyper | None = hyper(default=None, low=0, high=1)
    pull: Hyper = hyper(default=0.0, low=0, high=1)
    learning_rate: Hyper | None = hyper(default=None)

    def complements(self):
        """1 − κ as well, though κ may be 1."""
        return super().complements() | {"pull": "pull_complement"}

    def __post_init__(self):
        super().__post_init__()
        if self.rate is not None and self.learning_rate is not None:
            raise ValueError("average_iterates: give rate or learning_rate, not both")

    def slots(self, param):
        return {"average_offset": jnp.zeros_like(param)}

    def scalars(self):
        before = {"pull": 0.0} if callable(self.pull) else {}
        if self.rate is not None:
            return before
        return before | ({"total": 0.0} if self.learning_rate is None else {"total": 0.0, "largest": 0.0})

    def tick(self, h, scalars, weights, count):
        c = {"pull": h.pull, "pull_complement": h.pull_complement}
        after = {}
        if callable(self.pull):
            c["turn"], after["pull"] = h.pull - scalars.pull, h.pull
        if self.rate is not None:
            return Tick(c | {"rate": h.rate}, after, weights)
        weight = jnp.ones_like(scalars.total)
        if self.learning_rate is not None:
            after["largest"] = jnp.maximum(scalars.largest, h.learning_rate)
            weight = after["largest"] ** 2
        after["total"] = scalars.total + weight
        c["rate"] = weight / jnp.where(after["total"] == 0, 1, after["total"])
        return Tick(c, after, weights)

    def apply(self, signal, slots, param, c):
        u, before = signal.direction, slots.average_offset
        behind = before - u
        step = c.pull_complement * u - c.pull * c.rate * behind
        if callable(self.pull):
            step = step + c.turn * before
        return signal._replace(direction=step), {"average_offset": behind - c.rate * behind}


class lookahead(Rule):
    r"""Zhang's Lookahead: every k steps the fast weights go back to a part a of their way, and on from there.

    With o the way since the last return: o ← o + u, and in every k-th step u ← u − (1−a)o, o ← 0. The slow weights
    of the paper are the parameters minus ``way``; right after a return they are the parameters.

    Must be last, after the learning rate. (Not Nesterov's lookahead: that is ``nag_lookahead``.)

    Args:
        every: k ≥ 1 steps; 5 as in the paper.
        share: a in [0, 1], the part of the way that is kept; 0.5 as in the paper.

    State: ``way`` like the parameters; ``steps``, how many are in it (a scalar).

    Inf and NaN stay in their element, and in its slot until the next return.

    Raises:
        TypeError: for an ``every`` that is no integer.
        ValueError: for an ``every`` below 1.

    Source: Zhang et al. (2019), "Lookahead optimizer: k steps forward, 1 step back".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.lookahead(2, 0.5))
    >>> p = jnp.array([0.0])
    >>> state = tx.init(p)
    >>> for _ in range(2):
    ...     p, state = gradtx.step(tx, p, jnp.array([1.0]), state)
    ...     print(p)
    [-1.]
    [-1.]
    """

    equation = r"o \leftarrow o + u, \quad \text{every } k \text{ steps } u \leftarrow u - (1-a) o, \; o \leftarrow 0"
    accumulates = True
    last = True
    nonnegative = ("steps",)

    every: int = 5
    share: Hyper = hyper(default=0.5, low=0, high=1)

    def complements(self):
        """1 − a as well, though a may be 1."""
        return super().complements() | {"share": "share_complement"}

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "every", integer(self.label, "every", self.every, low=1))

    def slots(self, param):
        return {"way": jnp.zeros_like(param)}

    def scalars(self):
        return {"steps": 0.0}

    def tick(self, h, scalars, weights, count):
        returns = scalars.steps >= self.every - 1  # not by the count, which stays where int32 ends
        after = {"steps": jnp.where(returns, 0, scalars.steps + 1)}
        back = h.share_complement
        return Tick({"back": back, "returns": jnp.where(returns, jnp.ones_like(back), 0)}, after, weights)

    def apply(self, signal, slots, param, c):
        u, returns = signal.direction, c.returns > 0
        way = slots.way + u  # chosen and not multiplied by 0, so that no inf or NaN stays in it
        return signal._replace(direction=jnp.where(returns, u - c.back * way, u)), {"way": jnp.where(returns, 0, way)}
