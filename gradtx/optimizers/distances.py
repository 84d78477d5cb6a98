"""Optimizers that need no learning rate: the length of steps follows from the way gone so far."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import (
    in_units_of_distance,
    momentum,
    precondition,
    rms,
    scale_by_distance,
    scale_by_gradient_norm,
    scale_by_learning_rate,
)
from gradtx.rules.base import Hyper

__all__ = ["dog", "prodigy"]


def dog(
    learning_rate: Hyper = 1.0,
    initial: Hyper = 1e-6,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """DoG, distance over gradients: SGD with the rate max‖w − w₀‖/√Σ‖g‖².

    Args:
        learning_rate: η. 1: there is nothing to tune.
        initial: the first distance, in units of 1 + ‖w₀‖. 1e-6 as its authors advise; 1e-4 with batch normalization.
        eps: ε inside the root. 1e-8.
        weight_decay: λ, added to the gradient. None here.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: to be rid of the learning rate of SGD. The last iterate is noisy: evaluate an average of them, with
    ``average_iterates`` at the end.

    Source: Ivgi, Hinder & Carmon (2023), "DoG is SGD's best friend: a parameter-free dynamic step size schedule".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.dog().rules]
    ['scale_by_gradient_norm', 'scale_by_distance', 'scale_by_learning_rate']
    """
    norm, distance = scale_by_gradient_norm(None, 0.0, eps, over="tree"), scale_by_distance(initial)
    return chain(*decoupled(weight_decay, decay_mask), norm, distance, scale_by_learning_rate(learning_rate))


def prodigy(
    learning_rate: Hyper = 1.0,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    initial: Hyper = 1e-6,
    coefficient: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """Prodigy: Adam in units of the distance to the minimum, which it estimates; w ← w − ηd·m/(√v + dε).

    Args:
        learning_rate: η, a schedule that begins at 1 or so. 1: there is nothing to tune.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper; the averages are not debiased.
        eps: ε outside the root, in units of the distance.
        initial: the first estimate d₀, far below the distance. 1e-6 as its authors take.
        coefficient: of the estimate. 1; 0.5 or 2 for smaller or larger steps.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: fine-tuning, where the right learning rate of Adam is unknown. It takes two more arrays like the
    parameters than Adam. Its estimates follow ``learning_rate``: change both of those in the state together.

    Source: Mishchenko & Defazio (2023), "Prodigy: an expeditiously adaptive parameter-free learner".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.prodigy().rules]
    ['in_units_of_distance', 'scale_by_learning_rate']
    """
    adam = chain(momentum(b1), rms(b2), precondition(eps), *decoupled(weight_decay, decay_mask))
    decay = derived(lambda b2: b2**0.5, b2)
    units = in_units_of_distance(adam, learning_rate, initial, decay, coefficient)
    return chain(units, scale_by_learning_rate(learning_rate))
