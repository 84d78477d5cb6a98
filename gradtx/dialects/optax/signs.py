"""optax's optimizers whose direction is a sign."""

from __future__ import annotations

from typing import Any

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import is_zero
from gradtx.dialects.optax._parts import unmasked
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper

__all__ = ["lion", "sign_sgd", "signum"]


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
        b2: β₂ of the momentum, greater than 0.
        mu_dtype: the dtype that the momentum is held in; None: the parameters'.
        weight_decay: λ.
        mask: which leaves decay; None: all.

    Raises:
        ValueError: for a β₂ of 0.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.lion(1e-4).rules][:3]
    ['momentum', 'quasi_hyperbolic', 'sign']
    """
    if is_zero(b2):
        raise ValueError("optax.lion: b2 must be greater than 0; with b2=0 take sign_sgd(learning_rate)")
    average = rules.momentum(b2, state_dtype=mu_dtype)
    mixture = rules.quasi_hyperbolic(derived(lambda b1, b2: b1 / b2, b1, b2))
    decay = decoupled(weight_decay, unmasked(mask))
    return chain(average, mixture, rules.sign(), *decay, rules.scale_by_learning_rate(learning_rate))
