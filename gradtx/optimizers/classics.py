"""The optimizers of the review article and their nearest kin: SGD to Nadam.

The article is 深度学习的实践秘诀：优化方法回顾 ("Practical secrets of deep learning: optimization methods
reviewed"), 28 May 2019. The copy at hand does not name its author.
"""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.limits import constant
from gradtx._core.selectors import Select
from gradtx.rules import (
    adagrad_sum,
    add_decayed_weights,
    centered_rms,
    debias,
    max_v,
    momentum,
    monotone_rms,
    nag_lookahead,
    nesterov,
    precondition,
    rms,
    scale_by_learning_rate,
    trace,
)
from gradtx.rules.base import Hyper

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "amsgrad",
    "article_adam",
    "article_max_v",
    "momentum_sgd",
    "nadam",
    "nadamw",
    "nag",
    "rmsprop",
    "sgd",
]


def sgd(learning_rate: Hyper, momentum: Hyper | None = None, nesterov: bool = False) -> Chain:
    """Stochastic gradient descent: w ← w − ηg; with momentum, heavy ball or Nesterov's form of it.

    Momentum is an accumulator (b ← μb + g) before the learning rate, as in torch and optax: a learning rate that
    changes rescales the whole accumulator. Swap the two rules to have it inside, as in Keras.

    Args:
        learning_rate: η.
        momentum: μ in [0, 1), or None for none (the default everywhere).
        nesterov: whether the momentum looks ahead.

    When to use: with a schedule, and time to tune the rate: it stores nothing, and often has the best test accuracy.

    Raises:
        ValueError: for ``nesterov`` without momentum.

    >>> import gradtx
    >>> gradtx.sgd(0.1, momentum=0.9)
    chain(trace(decay=0.9, nesterov=False), scale_by_learning_rate(learning_rate=0.1))
    """
    if momentum is None:
        if nesterov:
            raise ValueError("sgd: nesterov=True needs a momentum, for example momentum=0.9")
        return chain(scale_by_learning_rate(learning_rate))
    return chain(trace(momentum, nesterov), scale_by_learning_rate(learning_rate))


def momentum_sgd(learning_rate: Hyper, decay: Hyper = 0.9) -> Chain:
    """The review article's momentum: w ← w − ηm with the average m ← ρm + (1−ρ)g, not debiased.

    Equal to ``sgd(η·(1−ρ), momentum=ρ)``: the average is 1−ρ times the accumulator.

    Args:
        learning_rate: η.
        decay: ρ in [0, 1). The article advises 0.85 to 0.95.

    When to use: as SGD, on a loss with narrow valleys, plateaus or saddles.

    >>> import gradtx
    >>> gradtx.momentum_sgd(0.1)
    chain(momentum(decay=0.9), scale_by_learning_rate(learning_rate=0.1))
    """
    return chain(momentum(decay), scale_by_learning_rate(learning_rate))


def nag(learning_rate: Hyper, decay: Hyper = 0.9, lookahead: Hyper = 1.0) -> Chain:
    """The review article's NAG: its momentum, with gradients taken one whole step ahead, at w − ηm.

    The parameters held are the points looked ahead to. Nesterov (1983) looks ahead by μ times the last step instead;
    for that, and for any schedule, ``chain(scale_by_learning_rate(η), trace(μ), nag_lookahead(μ))``.

    Args:
        learning_rate: η.
        decay: ρ in [0, 1), as in ``momentum_sgd``.
        lookahead: κ ≥ 0, how many last steps to look ahead. 1 is the article's.

    When to use: in place of momentum, which swings more.

    >>> import gradtx
    >>> print(gradtx.nag(0.1))
    momentum(0.9) → scale_by_learning_rate(0.1) → nag_lookahead(1)
    """
    return chain(momentum(decay), scale_by_learning_rate(learning_rate), nag_lookahead(lookahead))


def adagrad(learning_rate: Hyper, initial: Hyper = 0.0, eps: Hyper = 1e-8, eps_root: Hyper = 0.0) -> Chain:
    """AdaGrad: w ← w − ηg/(√(Σ|g|²) + ε).

    Args:
        learning_rate: η.
        initial: what the sum starts at. 0 as in the paper; optax and Keras start at 0.1.
        eps: ε outside the root; the paper's δ, which it leaves open. 1e-8 is ``precondition``'s.
        eps_root: ε inside the root. 0; optax and Keras have 1e-7 here, and none outside.

    When to use: sparse features, whose rare gradients get long steps. Steps only shrink, so not for long trainings.

    Source: Duchi, Hazan & Singer (2011), "Adaptive subgradient methods for online learning and stochastic
    optimization".

    >>> import gradtx
    >>> print(gradtx.adagrad(0.1))
    adagrad_sum(0) → precondition(1e-08, 0) → scale_by_learning_rate(0.1)
    """
    return chain(adagrad_sum(initial), precondition(eps, eps_root), scale_by_learning_rate(learning_rate))


def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    centered: bool = False,
) -> Chain:
    """RMSProp: w ← w − ηg/(√v + ε) with the average v ← βv + (1−β)|g|², not debiased.

    With momentum, the learning rate stands inside it, as in optax and Keras (torch has it outside; the two are equal
    while the learning rate is constant).

    Args:
        learning_rate: η.
        decay: β in [0, 1). 0.9 as in Hinton's lecture.
        eps: ε outside the root. The lecture has none; 1e-8 is optax's value and ``precondition``'s place.
        eps_root: ε inside the root, where optax has its 1e-8.
        momentum: μ in [0, 1) of a heavy ball, or None.
        nesterov: whether the momentum looks ahead.
        centered: whether v is the variance of the gradient instead of its mean square (see ``centered_rms``).

    When to use: gradients that change their size, with little memory; recurrent networks, reinforcement learning.

    Raises:
        ValueError: for ``nesterov`` without momentum.

    Source: Tieleman & Hinton (2012), Coursera lecture 6.5.

    >>> import gradtx
    >>> print(gradtx.rmsprop(0.1))
    rms(0.9) → precondition(1e-08, 0) → scale_by_learning_rate(0.1)
    """
    if momentum is None and nesterov:
        raise ValueError("rmsprop: nesterov=True needs a momentum, for example momentum=0.9")
    heavy_ball = [] if momentum is None else [trace(momentum, nesterov)]
    is_centered = constant("rmsprop", "centered", centered, "bool")
    second_moment = centered_rms(decay) if is_centered else rms(decay)
    return chain(second_moment, precondition(eps, eps_root), scale_by_learning_rate(learning_rate), *heavy_ball)


def _adam_direction(b1: Hyper, b2: Hyper, eps: Hyper, eps_root: Hyper) -> Chain:
    return chain(momentum(b1), rms(b2), debias(), precondition(eps, eps_root))


def adam(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0) -> Chain:
    """Adam: momentum and RMS side by side, both debiased; w ← w − η·m̂/(√v̂ + ε).

    Args:
        learning_rate: η; the paper uses 0.001.
        b1: β₁ of m in [0, 1). 0.9 as in the paper.
        b2: β₂ of v in [0, 1). 0.999 as in the paper.
        eps: ε outside the root of the debiased v, as in the paper's Algorithm 1, torch and optax. (Keras divides
            first and debiases afterwards, "epsilon hat": swap ``debias`` and ``precondition``.)
        eps_root: ε inside the root, 0. optax has the same.

    When to use: a first choice, without weight decay.

    Source: Kingma & Ba (2015), "Adam: a method for stochastic optimization".

    >>> import gradtx
    >>> print(gradtx.adam(0.001))
    momentum(0.9) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.001)
    """
    return chain(_adam_direction(b1, b2, eps, eps_root), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
    decay_mask: Select = None,
) -> Chain:
    """Adam with decoupled weight decay: w ← w − η·(m̂/(√v̂ + ε) + λw).

    Args:
        learning_rate: η. It multiplies the decay as well, as in torch, Keras and optax; in the paper only its
            schedule does.
        b1, b2, eps, eps_root: as in ``adam``.
        weight_decay: λ. The paper searches it for each task; 1e-4 is optax's (torch has 1e-2, Keras 4e-3).
        decay_mask: which leaves decay, a selector as of ``where``; None: all. Biases and norms are often left out:
            ``decay_mask=lambda path, leaf: leaf.ndim > 1``.

    When to use: a first choice for nearly everything, with a warm-up and a rate that falls.

    Source: Loshchilov & Hutter (2019), "Decoupled weight decay regularization".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.adamw(0.001).rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    decay = add_decayed_weights(weight_decay, where=decay_mask)
    return chain(_adam_direction(b1, b2, eps, eps_root), decay, scale_by_learning_rate(learning_rate))


def amsgrad(
    learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0
) -> Chain:
    """AMSGrad: Adam whose second moment is the largest so far; in torch's and Keras's order, max before debiasing.

    The paper debiases nothing (leave ``debias`` out); optax takes the maximum of the debiased v (swap the two).

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adam``; the paper leaves them open, and experiments with 0.9 and 0.99 or 0.999.

    When to use: where Adam's steps grow again, so that it does not settle.

    Source: Reddi, Kale & Kumar (2018), "On the convergence of Adam and beyond".

    >>> import gradtx
    >>> print(gradtx.amsgrad(0.001))
    momentum(0.9) → rms(0.999) → max_v() → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.001)
    """
    averages = chain(momentum(b1), rms(b2), max_v(), debias())
    return chain(averages, precondition(eps, eps_root), scale_by_learning_rate(learning_rate))


def _nadam_direction(b1: Hyper, b2: Hyper, eps: Hyper, eps_root: Hyper, schedule_decay: Hyper | None) -> Chain:
    return chain(nesterov(b1, schedule_decay), rms(b2), debias(), precondition(eps, eps_root))


def nadam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    schedule_decay: Hyper | None = None,
) -> Chain:
    """Nadam: Adam that looks ahead, as NAG does.

    Its direction is the first moment as it will be in the next step: decayed once more, with this gradient added again.
    So the parameters need not move to the point ahead. The review article's form moves them: ``article_adam`` with
    ``nag_lookahead(1.0)`` behind it.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adam``.
        schedule_decay: of the momentum (see ``nesterov``). The paper leaves the schedule of μ open; None, a constant
            μ, is optax's; 0.004 is torch's and 1.0 Keras's.

    When to use: where Adam overshoots.

    Source: Dozat (2016), "Incorporating Nesterov momentum into Adam".

    >>> import gradtx
    >>> print(gradtx.nadam(0.001))
    nesterov(0.9) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.001)
    """
    return chain(_nadam_direction(b1, b2, eps, eps_root, schedule_decay), scale_by_learning_rate(learning_rate))


def nadamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
    schedule_decay: Hyper | None = None,
    decay_mask: Select = None,
) -> Chain:
    """Nadam with decoupled weight decay.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root, schedule_decay: as in ``nadam``.
        weight_decay, decay_mask: as in ``adamw``.

    When to use: where AdamW overshoots.

    >>> import gradtx
    >>> [rule.label for rule in gradtx.nadamw(0.001).rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    decay = add_decayed_weights(weight_decay, where=decay_mask)
    return chain(_nadam_direction(b1, b2, eps, eps_root, schedule_decay), decay, scale_by_learning_rate(learning_rate))


def article_adam(learning_rate: Hyper, decay: Hyper = 0.9, second_decay: Hyper = 0.999, eps: Hyper = 0.0) -> Chain:
    """The review article's Adam, "RMSProp + momentum": w ← w − ηm/√V, with nothing debiased.

    Its first step is (1−ρ)/√(1−β) times Adam's: 3.16 times with the defaults.

    Args:
        learning_rate: η.
        decay: ρ of m in [0, 1).
        second_decay: β of V in [0, 1). The article names no value for its Adam; these two are Kingma & Ba's.
        eps: outside the root. The article has none; where V is 0, so is the step.

    When to use: to follow the review article; else ``adam``.

    >>> import gradtx
    >>> print(gradtx.article_adam(0.001))
    momentum(0.9) → rms(0.999) → precondition(0, 0) → scale_by_learning_rate(0.001)
    """
    return chain(momentum(decay), rms(second_decay), precondition(eps), scale_by_learning_rate(learning_rate))


def article_max_v(learning_rate: Hyper, decay: Hyper = 0.9, second_decay: Hyper = 0.999, eps: Hyper = 0.0) -> Chain:
    """The review article's max-V: its Adam with a V that never falls, V ← max(βV + (1−β)|g|², V).

    Not AMSGrad, whose average forgets the maximum (see ``monotone_rms``).

    Args:
        learning_rate: η.
        decay, second_decay, eps: as in ``article_adam``.

    When to use: to follow the review article; else ``amsgrad``.

    >>> import gradtx
    >>> print(gradtx.article_max_v(0.001))
    momentum(0.9) → monotone_rms(0.999) → precondition(0, 0) → scale_by_learning_rate(0.001)
    """
    averages = chain(momentum(decay), monotone_rms(second_decay))
    return chain(averages, precondition(eps), scale_by_learning_rate(learning_rate))
