"""Parts of optax's recipes: averages, masks, and the direction of Adam."""

from __future__ import annotations

from typing import Any

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.contract import Tick
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled
from gradtx.rules.base import Hyper, Rule, hyper


class start_averages(Rule):
    r"""Averages as if they had started elsewhere than at 0: u ← u + (1−w_u)u₀; v ← v + (1−w_v)v₀.

    The weight that an average lacks of 1 is that of its start. Right after the averages, before ``debias``.

    Args:
        u0: u₀.
        v0: v₀ ≥ 0.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.optax import start_averages
    >>> tx, g = gradtx.chain(gradtx.momentum(0.9), start_averages(2.0)), jnp.array([1.0])
    >>> print(tx.update(g, tx.init(g))[0])  # 0.9·2 + 0.1·1
    [1.9]
    """

    equation = r"u \leftarrow u + (1 - w_u) u_0, \quad v \leftarrow v + (1 - w_v) v_0"

    u0: Hyper = hyper(default=0.0)
    v0: Hyper = hyper(default=0.0, low=0)

    def tick(self, h, scalars, weights, count):
        starts = {"u": (1 - weights.direction) * h.u0, "v": (1 - weights.second_moment) * h.v0}
        return Tick(starts, {}, weights)

    def apply(self, signal, slots, param, c):
        v = None if signal.second_moment is None else signal.second_moment + c.v
        return signal._replace(direction=signal.direction + c.u, second_moment=v), {}


def unmasked(mask: Select) -> Select:
    """No mask where optax has True for all leaves."""
    return None if mask is True else mask


def first_moment(b1: Hyper, mu_dtype: Any, nesterov: bool) -> Rule:
    """The average of Adam, or that of Nadam, which is debiased already."""
    maker = rules.nesterov if nesterov else rules.momentum
    return maker(b1, state_dtype=mu_dtype)


def adam_direction(b1: Hyper, b2: Hyper, eps: Hyper, eps_root: Hyper, mu_dtype: Any, nesterov: bool) -> Chain:
    """Adam before the learning rate."""
    averages = chain(first_moment(b1, mu_dtype, nesterov), rules.rms(b2))
    return chain(averages, rules.debias(), rules.precondition(eps, eps_root))


def coupled(weight_decay: Hyper | None, mask: Select) -> tuple[Rule, ...]:
    """Weight decay in front; none for None, as for 0."""
    return () if weight_decay is None else decoupled(weight_decay, unmasked(mask))
