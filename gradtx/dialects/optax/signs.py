"""optax's optimizers whose direction is a sign."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import lion_mixture
from gradtx.dialects.optax._parts import unmasked
from gradtx.optimizers._parts import decoupled
from gradtx.rules.base import Hyper, Rule

__all__ = ["lion", "rprop", "sign_sgd", "signum"]


def sign_sgd(learning_rate: Hyper) -> Chain:
    """optax.sign_sgd: the sign of the gradient.

    >>> from gradtx.dialects import optax
    >>> print(optax.sign_sgd(0.1))
    sign() → scale_by_learning_rate(0.1)
    """
    return chain(rules.sign(), rules.scale_by_learning_rate(learning_rate))


def signum(learning_rate: Hyper, beta: Hyper = 0.9, accumulator_dtype: Any = None) -> Chain:
    """optax.signum: the sign of the momentum.

    Args:
        learning_rate: η.
        beta: β of the average.
        accumulator_dtype: as in ``sgd``.

    >>> from gradtx.dialects import optax
    >>> print(optax.signum(0.1))
    momentum(0.9) → sign() → scale_by_learning_rate(0.1)
    """
    average = rules.momentum(beta, state_dtype=accumulator_dtype)
    return chain(average, rules.sign(), rules.scale_by_learning_rate(learning_rate))


def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-3,
    mask: Select = None,
) -> Chain:
    """optax.lion: the sign of a mixture of momentum and gradient, with decay 1e-3 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        b1: β₁ of the mixture.
        b2: β₂ of the momentum. The number 0 leaves g₋ of it, and the mixture is g − β₁(g − g₋).
        mu_dtype: the dtype that the momentum is held in; None: the parameters'.
        weight_decay: λ.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.lion(1e-4).rules][:3]
    ['momentum', 'quasi_hyperbolic', 'sign']
    """
    decay = decoupled(weight_decay, unmasked(mask))
    step = rules.scale_by_learning_rate(learning_rate)
    return chain(lion_mixture(b1, b2, mu_dtype), rules.sign(), *decay, step)


class one_late(Rule):
    r"""The direction of the step before; 0 where the gradient has turned against it: u ← u₋·[g·u₋ ≥ 0].

    State: ``previous``, u₋, like the parameters.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.optax import one_late
    >>> tx, seen = one_late(), []
    >>> state = tx.init(jnp.zeros(1))
    >>> for g in (1.0, 2.0, -3.0, -4.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    ...     seen.append(float(updates[0]))
    >>> print(seen)
    [0.0, 1.0, 0.0, -3.0]
    """

    equation = r"u \leftarrow u_{t-1} [g u_{t-1} \ge 0]"
    accumulates = True
    real_only = True

    def slots(self, param):
        return {"previous": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        turned = jnp.sign(signal.gradient) * jnp.sign(slots.previous) < 0
        return signal._replace(direction=jnp.where(turned, 0, slots.previous)), {"previous": signal.direction}


def rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
) -> Chain:
    """optax.rprop: steps by signs, each of them one step late; ``gradtx.rprop`` is torch's, in time.

    Args:
        learning_rate: the step sizes at the start.
        eta_minus: their factor where the gradient has turned.
        eta_plus: their factor where it has kept its sign.
        min_step_size: the smallest.
        max_step_size: the largest.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.rprop(0.1).rules]
    ['resilient_step', 'one_late', 'scale']
    """
    step = rules.resilient_step(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size)
    return chain(step, one_late(), rules.scale(-1.0))
