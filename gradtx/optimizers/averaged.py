"""Optimizers that evaluate an average of their iterates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._chain import Chain, chain
from gradtx._core.limits import number
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled
from gradtx.rules import (
    add_decayed_weights,
    average_iterates,
    debias,
    precondition,
    rms,
    scale_by_learning_rate,
)
from gradtx.rules.base import Hyper

__all__ = ["asgd", "schedule_free_adamw", "schedule_free_sgd"]


def schedule_free_sgd(
    learning_rate: Hyper, b1: Hyper = 0.9, weight_decay: Hyper = 0.0, decay_mask: Select = None
) -> Chain:
    """Schedule-free SGD: SGD steps z, their average x, and gradients in between, at y = (1−β)z + βx.

    The parameters held are y. Evaluate and keep ``evaluation_point(state, params)``, which is x. No learning rate
    schedule is needed but a warm-up. Two rules hold η: ``set_hyperparams`` has to change it in both, as
    ``{"scale_by_learning_rate.learning_rate": x, "average_iterates.learning_rate": x}``.

    Args:
        learning_rate: η, best with a warm-up; larger than SGD's.
        b1: β in [0, 1], how far y is towards x. 0.9 as in the paper.
        weight_decay: λ of a decay at y; 0.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: in place of SGD, for trainings whose length is not known in advance.

    Source: Defazio et al. (2024), "The road less scheduled".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.schedule_free_sgd(1.0).rules]
    ['scale_by_learning_rate', 'average_iterates']
    """
    average = average_iterates(pull=b1, learning_rate=learning_rate)
    return chain(*decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate), average)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """Schedule-free AdamW: RMSProp steps instead of momentum's, averaged as in ``schedule_free_sgd``.

    As large a state as Adam's: the average takes the place of the momentum.

    Args:
        learning_rate: η, best with a warm-up. 0.0025 as its authors take.
        b1: β in [0, 1], how far the parameters held are towards the average. 0.9 as in the paper.
        b2: β₂ of v in [0, 1). 0.999 as its authors take.
        eps: ε outside the root of the debiased v.
        weight_decay: λ of a decay at the parameters held; 0.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: trainings whose length is not known in advance.

    Source: Defazio et al. (2024), "The road less scheduled".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.schedule_free_adamw().rules]
    ['rms', 'debias', 'precondition', 'scale_by_learning_rate', 'average_iterates']
    """
    direction = chain(rms(b2), debias(), precondition(eps), *decoupled(weight_decay, decay_mask))
    average = average_iterates(pull=b1, learning_rate=learning_rate)
    return chain(direction, scale_by_learning_rate(learning_rate), average)


def asgd(
    learning_rate: Hyper = 0.01,
    decay: Hyper = 1e-4,
    power: float = 0.75,
    start: int = 1_000_000,
) -> Chain:
    """Averaged SGD: SGD with a decaying step, η/(1 + ληt)^α, and the average of its iterates from a step on.

    ``evaluation_point(state, params)`` is the average; before ``start`` it is the parameters. The state holds the step
    size, which falls: to change η on the way, give a schedule.

    Args:
        learning_rate: η of the first step. 0.01, torch's.
        decay: λ, of the weights and of the step size. 1e-4, torch's.
        power: α of the step size. 0.75, torch's; the paper's is ⅔ to 1.
        start: the number of steps before the average begins. A million, torch's.

    When to use: convex losses: the average of the iterates is better than the last of them.

    Source: Polyak & Juditsky (1992), "Acceleration of stochastic approximation by averaging".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.asgd().rules]
    ['add_decayed_weights', 'scale_by_learning_rate', 'average_iterates']
    """
    eta, weights = scale_by_learning_rate(learning_rate), add_decayed_weights(decay)
    rate = functools.partial(_decaying, eta.learning_rate, weights.rate, number("asgd", "power", power))
    average = average_iterates(functools.partial(_share_from, number("asgd", "start", start)))
    return chain(weights, scale_by_learning_rate(rate), average)


def _decaying(learning_rate: Hyper, decay: Hyper, power: float, count: jax.Array) -> Any:
    eta, lam = (value(count) if callable(value) else value for value in (learning_rate, decay))
    return eta / (1 + lam * eta * jnp.asarray(count, float)) ** power


def _share_from(start: float, count: jax.Array) -> Any:
    return 1 / jnp.asarray(jnp.maximum(1, count - start), float)
