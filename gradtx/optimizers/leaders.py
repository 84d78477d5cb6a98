"""Optimizers that go from the start to the minimum of all gradients so far."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradtx._chain import Chain, chain
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import adagrad_sum, dual_averaging, precondition, running_sum, scale
from gradtx.rules.base import Hyper

__all__ = ["madgrad"]


def madgrad(learning_rate: Hyper, momentum: Hyper = 0.9, weight_decay: Hyper = 0.0, eps: Hyper = 1e-6) -> Chain:
    """MADGRAD: dual averaging with a cube root; w ← μw + (1−μ)(w₀ − Σλg/(∛Σλg² + ε)) with λ = η√t.

    Args:
        learning_rate: η; 1e-2 to 1e-1 where SGD has 0.1, says the paper. It is part of the weights λ, which are the
            factors of the first and third rule.
        momentum: μ in [0, 1). 0.9 as in the paper.
        weight_decay: λ, added to the gradient. 0; less than SGD's is needed.
        eps: ε outside the root. 1e-6 as its authors take. (They also add it to η.)

    When to use: sparse gradients, and images where Adam generalizes worse than SGD.

    Source: Defazio & Jelassi (2022), "Adaptivity without compromise: a momentumized, adaptive, dual averaged gradient
    method for stochastic optimization".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.madgrad(0.01).rules]
    ['scale', 'adagrad_sum', 'scale', 'running_sum', 'precondition', 'scale', 'dual_averaging', 'scale']
    """

    def root_of_weight(learning_rate: Any, count: jax.Array) -> Any:
        """√λ, with λ = η√t: the sum of squares is one of (√λ·g)², that of gradients of √λ·√λ·g."""
        return jnp.asarray(learning_rate, float) ** 0.5 * (jnp.asarray(count, float) + 1) ** 0.25

    root = derived(root_of_weight, learning_rate, lambda count: count)
    sums = chain(scale(root), adagrad_sum(), scale(root), running_sum())
    way = chain(sums, precondition(eps, power=1 / 3), scale(-1.0), dual_averaging())
    return chain(*decoupled(weight_decay, None), way, scale(derived(lambda momentum: 1 - momentum, momentum)))
