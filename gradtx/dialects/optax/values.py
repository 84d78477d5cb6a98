"""optax's optimizers that read the value of the loss."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx.dialects._arguments import is_zero
from gradtx.optimizers._parts import derived
from gradtx.rules.base import Hyper

__all__ = ["momo", "momo_adam", "polyak_sgd"]


def _check_model(name: str, weight_decay: Hyper, adapt_lower_bound: bool) -> None:
    if not is_zero(weight_decay) or adapt_lower_bound:
        raise ValueError(
            f"optax.{name}: weight_decay and adapt_lower_bound are not here. Put gradtx.decay_weights behind the chain "
            f"and give a lower_bound, or seal optax's own into a chain: gradtx.seal(optax.contrib.{name}(...))"
        )


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
        weight_decay: 0 alone.
        adapt_lower_bound: False alone.

    Raises:
        ValueError: for a ``weight_decay`` or an ``adapt_lower_bound``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.momo().rules]
    ['momentum', 'scale_by_model', 'scale']
    """
    _check_model("momo", weight_decay, adapt_lower_bound)
    decay = derived(lambda beta, count: jnp.where(count == 0, 0, beta), beta, lambda count: count)
    return chain(rules.momentum(decay), rules.scale_by_model(decay, learning_rate, lower_bound), rules.scale(-1.0))


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

    Raises:
        ValueError: for a ``weight_decay`` or an ``adapt_lower_bound``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.momo_adam().rules]
    ['momentum', 'rms', 'debias', 'scale_by_model', 'scale']
    """
    _check_model("momo_adam", weight_decay, adapt_lower_bound)
    averages = chain(rules.momentum(b1), rules.rms(b2), rules.debias())
    return chain(averages, rules.scale_by_model(b1, learning_rate, lower_bound, eps), rules.scale(-1.0))


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
