"""optax's optimizers that go from the start to the minimum of all gradients so far."""

from __future__ import annotations

from gradtx import optimizers, rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects.optax._parts import unmasked
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper

__all__ = ["cocob", "madgrad"]


def madgrad(learning_rate: Hyper, momentum: Hyper = 0.9, weight_decay: Hyper = 0.0, eps: Hyper = 1e-6) -> Chain:
    """optax.contrib.madgrad: dual averaging with a cube root, whose learning rate is η + ε as its authors have it.

    Args:
        learning_rate: η.
        momentum: μ.
        weight_decay: λ, added to the gradient.
        eps: ε outside the root, and added to η.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.madgrad(0.01).rules][4:]
    ['precondition', 'scale', 'dual_averaging', 'scale']
    """
    rate = derived(lambda eta, eps: eta + eps, learning_rate, eps)
    return optimizers.madgrad(rate, momentum, weight_decay, eps)


def cocob(
    learning_rate: Hyper = 1.0,
    alpha: Hyper = 100.0,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.contrib.cocob: coin betting, on gradients times the learning rate.

    Args:
        learning_rate: η. A constant one shows only beside ``eps``; a schedule gives each gradient a weight.
        alpha: α, of which the first step is a part.
        eps: the least scale of gradients.
        weight_decay: λ, added to the gradient.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> print(optax.cocob())
    scale(1) → coin_betting(100, 1e-08)
    """
    decay = decoupled(weight_decay, unmasked(mask))
    return chain(*decay, rules.scale(learning_rate), rules.coin_betting(alpha, eps))
