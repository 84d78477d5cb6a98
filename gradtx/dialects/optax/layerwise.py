"""optax's optimizers whose steps are scaled layer by layer."""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp

from gradtx import optimizers, rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects.optax._parts import adam_direction, unmasked
from gradtx.optimizers._parts import decoupled
from gradtx.rules.base import Hyper

__all__ = ["adafactor", "fromage", "lamb", "lars", "novograd", "sm3"]


def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Hyper | None = 1.0,
    momentum: Hyper | None = None,
    dtype_momentum: Any = jnp.float32,
    weight_decay_rate: Hyper | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Select = None,
) -> Chain:
    """optax.adafactor: division by a factored second moment, clip, learning rate, weights' size, [average, decay].

    Args:
        learning_rate: η, inside the momentum and not on the decay; None: 1.
        min_dim_size_to_factor: the least size of both axes for a leaf to be factored.
        decay_rate: p of the decay 1 − t^(−p).
        decay_offset: the number of steps before t counts; in them t is 1, where optax's updates are NaN.
        multiply_by_parameter_scale: whether steps are relative to the root mean square of the weights.
        clipping_threshold: of each leaf's root mean square, or None.
        momentum: β of an average of the steps, or None.
        dtype_momentum: the dtype that it is held in.
        weight_decay_rate: λ, which no learning rate multiplies, or None.
        eps: added to the squares.
        factored: whether to factor at all.
        weight_decay_mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adafactor(0.1).rules]
    ['scale_by_factored_rms', 'clip_by_rms', 'scale_by_learning_rate', 'scale_by_parameter_rms']
    """
    least = min_dim_size_to_factor if factored else sys.maxsize
    clips = [] if clipping_threshold is None else [rules.clip_by_rms(clipping_threshold)]
    rate = rules.scale(-1.0) if learning_rate is None else rules.scale_by_learning_rate(learning_rate)
    size = [rules.scale_by_parameter_rms()] if multiply_by_parameter_scale else []
    average = [] if momentum is None else [rules.momentum(momentum, state_dtype=dtype_momentum)]
    where = unmasked(weight_decay_mask)
    decay = [] if weight_decay_rate is None else [rules.decay_weights(1.0, weight_decay_rate, where=where)]
    direction = chain(rules.scale_by_factored_rms(decay_rate, eps, least, offset=decay_offset), *clips)
    return chain(direction, rate, *size, *average, *decay)


def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.lamb: Adam's direction, [decay,] as long as the leaf's weights, learning rate.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adam``.
        weight_decay: λ, inside the trust ratio.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.lamb(0.1).rules][-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    direction = chain(adam_direction(b1, b2, eps, eps_root, None, False), *decoupled(weight_decay, unmasked(mask)))
    return chain(direction, rules.scale_by_trust_ratio(), rules.scale_by_learning_rate(learning_rate))


def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Select = True,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Select = True,
    momentum: Hyper = 0.9,
    nesterov: bool = False,
) -> Chain:
    """optax.lars: [decay,] a share of the leaf's weights' norm, learning rate, heavy ball.

    Args:
        learning_rate: η, inside the momentum.
        weight_decay: λ, inside the trust ratio.
        weight_decay_mask: which leaves decay; True: all.
        trust_coefficient: the share.
        eps: added to the norm of the direction.
        trust_ratio_mask: which leaves have a trust ratio; True: all.
        momentum: μ of the heavy ball.
        nesterov: whether it looks ahead.

    >>> from gradtx.dialects import optax
    >>> print(optax.lars(0.1))
    scale_by_trust_ratio(0.001, 0, 0) → scale_by_learning_rate(0.1) → trace(0.9, False)
    """
    ratio = rules.scale_by_trust_ratio(trust_coefficient, eps, where=unmasked(trust_ratio_mask))
    direction = chain(*decoupled(weight_decay, unmasked(weight_decay_mask)), ratio)
    return chain(direction, rules.scale_by_learning_rate(learning_rate), rules.trace(momentum, nesterov))


def fromage(learning_rate: Hyper, min_norm: Hyper = 1e-6) -> Chain:
    """optax.fromage: steps as long as the weights times η, and weights back to about their length.

    Args:
        learning_rate: η; the factor is 1/√(1 + η²).
        min_norm: the least norm of weights and directions.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.fromage(0.01).rules]
    ['scale_by_trust_ratio', 'scale_by_learning_rate', 'decay_weights']
    """
    return optimizers.fromage(learning_rate, min_norm)


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
) -> Chain:
    """optax.novograd: division by the average norm of each leaf, decay, heavy ball, learning rate.

    Args:
        learning_rate: η.
        b1: β₁ of the heavy ball.
        b2: β₂ of the squared norms.
        eps: ε outside the root.
        eps_root: ε inside the root.
        weight_decay: λ, through the momentum.

    >>> from gradtx.dialects import optax
    >>> print(optax.novograd(0.01))
    scale_by_gradient_norm(0.25, 1e-06, 0) → trace(0.9, False) → scale_by_learning_rate(0.01)
    """
    direction = chain(rules.scale_by_gradient_norm(b2, eps, eps_root), *decoupled(weight_decay, None))
    return chain(direction, rules.trace(b1), rules.scale_by_learning_rate(learning_rate))


def sm3(learning_rate: Hyper, momentum: Hyper = 0.9) -> Chain:
    """optax.sm3: division by a number for each row and column, momentum, learning rate.

    Args:
        learning_rate: η; in optax a number.
        momentum: β of the average.

    >>> from gradtx.dialects import optax
    >>> print(optax.sm3(0.1))
    scale_by_sm3(1e-08) → momentum(0.9) → scale_by_learning_rate(0.1)
    """
    return optimizers.sm3(learning_rate, momentum)
