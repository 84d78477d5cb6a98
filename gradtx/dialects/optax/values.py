"""optax's optimizers that read the value of the loss."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx.dialects._arguments import is_zero
from gradtx.optimizers._parts import derived
from gradtx.rules.base import Hyper

__all__ = ["momo", "momo_adam", "polyak_sgd"]


def _model(beta: Hyper, learning_rate: Hyper, bound: Hyper, decay: Hyper, adapt: bool, eps: Hyper | None) -> Chain:
    """The step that the model asks for; and weights divided by 1 + ηλ."""
    without = is_zero(decay)
    lost = derived(lambda eta, rate: eta * rate / (1 + eta * rate), learning_rate, decay)
    model = rules.scale_by_model(beta, learning_rate, bound, eps, None if without else decay, adapt=adapt)
    return chain(model, rules.scale(-1.0), *([] if without else [rules.decay_weights(1.0, lost)]))


def momo(
    learning_rate: Hyper = 1.0,
    beta: Hyper = 0.9,
    lower_bound: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    adapt_lower_bound: bool = False,
) -> Chain:
    """optax.contrib.momo: momentum from the first gradient on, and the step that its model asks for.

    Args:
        learning_rate: the longest step.
        beta: β of all averages.
        lower_bound: f*, the loss at its minimum.
        weight_decay: λ: the weights are divided by 1 + ηλ, and the step not, as in the paper and ``gradtx.momo`` it is.
        adapt_lower_bound: whether to estimate a higher f* on the way.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.momo().rules]
    ['momentum', 'scale_by_model', 'scale']
    """
    decay = derived(lambda beta, count: jnp.where(count == 0, 0, beta), beta, lambda count: count)
    return chain(
        rules.momentum(decay), _model(decay, learning_rate, lower_bound, weight_decay, adapt_lower_bound, None)
    )


def momo_adam(
    learning_rate: Hyper = 1e-2,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    lower_bound: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    adapt_lower_bound: bool = False,
) -> Chain:
    """optax.contrib.momo_adam: Adam, and the step that the model of its momentum asks for.

    Args:
        learning_rate: the longest step.
        b1: β₁.
        b2: β₂.
        eps: ε outside the root.
        lower_bound, weight_decay, adapt_lower_bound: as in ``momo``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.momo_adam().rules]
    ['momentum', 'rms', 'debias', 'scale_by_model', 'scale']
    """
    averages = chain(rules.momentum(b1), rules.rms(b2), rules.debias())
    return chain(averages, _model(b1, learning_rate, lower_bound, weight_decay, adapt_lower_bound, eps))


def polyak_sgd(
    max_learning_rate: Hyper = 1.0,
    scaling: Hyper = 1.0,
    f_min: Hyper = 0.0,
    eps: Hyper = 0.0,
    variant: str = "sps",
) -> Chain:
    """optax.polyak_sgd: the learning rate, then Polyak's step of what it made; ``update`` needs ``value=loss``.

    Args:
        max_learning_rate: the longest step.
        scaling: a factor of the gradient in front of it.
        f_min: f*, the loss at its minimum.
        eps: ε, added to the squared norm.
        variant: "sps": a loss below f* goes uphill; "sps+": it stays.

    Raises:
        ValueError: for another ``variant``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.polyak_sgd().rules]
    ['scale_by_learning_rate', 'scale_by_polyak']
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(f"optax.polyak_sgd: variant must be 'sps' or 'sps+', found {variant!r}")
    step = rules.scale_by_polyak(f_min, max_learning_rate, eps, signed=variant == "sps")
    return chain(rules.scale_by_learning_rate(scaling), step)
