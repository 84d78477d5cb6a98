"""Optimizers that need no learning rate: the length of steps follows from the way gone so far."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import (
    coin_betting,
    in_units_of_distance,
    momentum,
    precondition,
    rms,
    scale,
    scale_by_distance,
    scale_by_distance_bound,
    scale_by_gradient_norm,
    scale_by_learning_rate,
)
from gradtx.rules.base import Hyper

__all__ = ["cocob", "dadapt_adam", "dog", "prodigy"]


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


def dadapt_adam(
    learning_rate: Hyper = 1.0,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    initial: Hyper = 1e-6,
) -> Chain:
    """D-Adapted Adam: Adam whose learning rate is a lower bound d of the distance to the minimum; w ← w − m/(√v + ε).

    Args:
        learning_rate: η, a factor of d inside the momentum; a schedule that ends at 0, say. 1: nothing is to tune.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper; the averages are not debiased.
        eps: ε outside the root. 1e-8.
        initial: d₀, below the distance. 1e-6 as its authors take.

    When to use: as ``prodigy``, its heir, which comes to the distance sooner and takes one more array.

    Source: Defazio & Mishchenko (2023), "Learning-rate-free learning by D-Adaptation", Algorithm 4.

    >>> import gradtx
    >>> [rule.label for rule in gradtx.dadapt_adam().rules]
    ['rms', 'scale_by_distance_bound', 'momentum', 'precondition', 'scale']
    """
    bound = scale_by_distance_bound(learning_rate, initial, derived(lambda b2: b2**0.5, b2), eps)
    return chain(rms(b2), bound, momentum(b1), precondition(eps), scale(-1.0))


def cocob(
    learning_rate: Hyper = 1.0,
    alpha: Hyper = 100.0,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """COCOB: each weight bets on the sign of its next gradient, a share of what it has won so far.

    Args:
        learning_rate: η, a factor of the gradients. 1: a constant one changes nothing, and a schedule gives each
            gradient a weight.
        alpha: α, of which the first steps are a part. 100 as in the paper; more starts more slowly.
        weight_decay: λ, added to the gradient. None here.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: to be rid of the learning rate, with networks whose weights have to go some way each by itself. It
    takes four arrays like the parameters, and w₀.

    Source: Orabona & Tommasi (2017), "Training deep networks without learning rates through coin betting".

    >>> import gradtx
    >>> print(gradtx.cocob())
    scale(1) → coin_betting(100, 0)
    """
    return chain(*decoupled(weight_decay, decay_mask), scale(learning_rate), coin_betting(alpha))
