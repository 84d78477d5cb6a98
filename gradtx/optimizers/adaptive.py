"""Adam's relatives: one rule of the chain exchanged, moved or added."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradtx._chain import Chain, chain, seal
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import (
    add_difference,
    add_momentum,
    belief_rms,
    clip_by_norm,
    clip_by_value,
    debias,
    extrapolate,
    infinity,
    lag_v,
    momentum,
    precondition,
    quasi_hyperbolic,
    rectified_precondition,
    rms,
    scale_by_learning_rate,
    scale_by_update_rms,
    yogi_rms,
)
from gradtx.rules.base import Hyper

__all__ = [
    "adabelief",
    "adadelta",
    "adamax",
    "adan",
    "ademamix",
    "adopt",
    "laprop",
    "mars",
    "qhadam",
    "qhm",
    "radam",
    "yogi",
]


def qhm(learning_rate: Hyper, decay: Hyper = 0.999, nu: Hyper = 0.7) -> Chain:
    """Quasi-hyperbolic momentum: w ← w − η·(νm + (1−ν)g).

    Args:
        learning_rate: η.
        decay: β of m in [0, 1). 0.999 as the paper advises.
        nu: ν, the share of the momentum. 0.7 as the paper advises; 0 is SGD, 1 the article's momentum, β Nesterov's.

    When to use: SGD's accuracy with less tuning of the momentum.

    Source: Ma & Yarats (2019), "Quasi-hyperbolic momentum and Adam for deep learning".

    >>> import gradtx
    >>> print(gradtx.qhm(0.1))
    momentum(0.999) → quasi_hyperbolic(0.7) → scale_by_learning_rate(0.1)
    """
    return chain(momentum(decay), quasi_hyperbolic(nu), scale_by_learning_rate(learning_rate))


def qhadam(
    learning_rate: Hyper,
    b1: Hyper = 0.995,
    b2: Hyper = 0.999,
    nu1: Hyper = 0.7,
    nu2: Hyper = 1.0,
    eps: Hyper = 1e-8,
) -> Chain:
    """QHAdam: Adam with a share of the gradient itself in both averages.

    Args:
        learning_rate: η.
        b1, b2: β₁ and β₂ in [0, 1). 0.995 and 0.999 as the paper advises.
        nu1, nu2: ν₁ and ν₂, the shares of the averages. 0.7 and 1 as the paper advises.
        eps: ε outside the root.

    When to use: where Adam overshoots: the share of the gradient damps it.

    Source: Ma & Yarats (2019), "Quasi-hyperbolic momentum and Adam for deep learning".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.qhadam(1e-3).rules][:4]
    ['momentum', 'rms', 'debias', 'quasi_hyperbolic']
    """
    averages = chain(momentum(b1), rms(b2), debias(), quasi_hyperbolic(nu1, nu2))
    return chain(averages, precondition(eps), scale_by_learning_rate(learning_rate))


def adamax(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999) -> Chain:
    """Adamax: Adam with the infinity norm of the gradients; w ← w − η·m̂/max(β₂ᵏ|g_{t−k}|).

    It is AMSGrad's maximum with forgetting: ``max_v(β₂²)`` of |g|² itself, but for squares that are no float.

    Args:
        learning_rate: η; the paper uses 0.002.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper.

    The paper has no epsilon; where no gradient has come yet the step is 0. torch and optax add 1e-8 to |g| (see
    ``infinity``), Keras 1e-7 to the maximum.

    When to use: sparse gradients with rare large ones.

    Source: Kingma & Ba (2015), Algorithm 2.

    >>> import gradtx
    >>> print(gradtx.adamax(0.002, b2=0.5))
    momentum(0.9) → infinity(0.5, 0, power=1) → debias() → precondition(0, 0, power=1) → scale_by_learning_rate(0.002)
    """
    averages = chain(momentum(b1), infinity(b2, 0.0, power=1), debias())
    return chain(averages, precondition(0.0, power=1), scale_by_learning_rate(learning_rate))


def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """AdaBelief: Adam divided by how far gradients are from their average; w ← w − η·m̂/(√ŝ + ε).

    Args:
        learning_rate: η.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper.
        eps: ε, outside the root and, as in the paper, added to s in each step. 1e-16 as its authors take.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: steady gradients, for which Adam's steps are too short.

    Source: Zhuang et al. (2020), "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.adabelief(1e-3).rules]
    ['belief_rms', 'debias', 'precondition', 'scale_by_learning_rate']
    """
    direction = chain(belief_rms(b1, b2, eps), debias(), precondition(eps))
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def yogi(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-3) -> Chain:
    """Yogi: Adam whose second moment falls by no more than the squared gradient.

    Args:
        learning_rate: η; the paper uses 0.01.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper.
        eps: ε outside the root. 1e-3 as in the paper.

    Both averages start at zero and are debiased; optax starts them at 1e-6.

    When to use: sparse gradients, after which Adam's second moment falls too fast.

    Source: Zaheer et al. (2018), "Adaptive methods for nonconvex optimization".

    >>> import gradtx
    >>> print(gradtx.yogi(0.01))
    momentum(0.9) → yogi_rms(0.999, 0) → debias() → precondition(0.001, 0) → scale_by_learning_rate(0.01)
    """
    averages = chain(momentum(b1), yogi_rms(b2), debias())
    return chain(averages, precondition(eps), scale_by_learning_rate(learning_rate))


def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """RAdam: Adam that goes by its momentum alone until its second moment is to be relied on.

    Args:
        learning_rate: η.
        b1, b2, eps: as in ``adam``.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: where Adam needs a warm-up; this one brings its own.

    Source: Liu et al. (2020), "On the variance of the adaptive learning rate and beyond".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.radam(1e-3).rules]
    ['momentum', 'rms', 'debias', 'rectified_precondition', 'scale_by_learning_rate']
    """
    direction = chain(momentum(b1), rms(b2), debias(), rectified_precondition(b2, eps))
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def adadelta(learning_rate: Hyper = 1.0, decay: Hyper = 0.95, eps: Hyper = 1e-6) -> Chain:
    """AdaDelta: RMSProp times the root mean square of its own past updates; w ← w − η·g·√(x + ε)/√(v + ε).

    Args:
        learning_rate: η. 1, since the paper has none.
        decay: ρ of both averages in [0, 1). 0.95 as in the paper; torch and optax have 0.9.
        eps: ε inside both roots. 1e-6 as in the paper.

    When to use: where the scale of the step is unknown. It starts slowly: the first steps are √ε long.

    Source: Zeiler (2012), "ADADELTA: an adaptive learning rate method".

    >>> import gradtx
    >>> print(gradtx.adadelta())
    rms(0.95) → precondition(0, 1e-06) → scale_by_update_rms(0.95, 1e-06) → scale_by_learning_rate(1)
    """
    direction = chain(rms(decay), precondition(0.0, eps), scale_by_update_rms(decay, eps))
    return chain(direction, scale_by_learning_rate(learning_rate))


def laprop(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """LaProp: Adam that divides first and averages afterwards: the momentum of preconditioned gradients.

    Args:
        learning_rate: η; the paper uses 4e-4.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper. Unlike Adam it is stable for any pair of them.
        eps: ε outside the root.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: where Adam is not stable: a small β₂ beside a large β₁.

    Source: Ziyin et al. (2020), "LaProp: separating momentum and adaptivity in Adam".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.laprop(1e-3).rules]
    ['rms', 'debias', 'precondition', 'momentum', 'debias', 'scale_by_learning_rate']
    """
    direction = chain(rms(b2), debias(), precondition(eps), momentum(b1), debias())
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def adopt(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """ADOPT: LaProp whose divisor has not seen the gradient yet; converges for any β₂.

    The first gradient only fills v. Later directions g/max(√v₋, ε) are clipped to (t−1)^¼ in each element, averaged,
    and not debiased.

    Args:
        learning_rate: η; 1e-3 in the paper.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.9999 as in the paper.
        eps: ε, a floor of the root. 1e-6 as in the paper.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: where Adam does not converge, or β₂ is hard to choose.

    Source: Taniguchi et al. (2024), "ADOPT: modified Adam can converge with any β₂ with the optimal rate".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.adopt(1e-3).rules]
    ['rms', 'lag_v', 'precondition', 'clip_by_value', 'momentum', 'scale_by_learning_rate']
    """
    divided = chain(rms(b2, start="first"), lag_v(), precondition(eps, form="max"))
    direction = chain(divided, clip_by_value(_fourth_root), momentum(b1))
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def _fourth_root(count: jax.Array) -> jax.Array:
    return jnp.asarray(count, float) ** 0.25


def ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """AdEMAMix: Adam with a second, much slower momentum: w ← w − η·((m̂₁ + αm₂)/(√v̂ + ε) + λw).

    Args:
        learning_rate: η.
        b1, b2, eps: as in ``adam``.
        b3: β₃ of the slow average in [0, 1), which is not debiased. 0.9999 as in the paper.
        alpha: α, the factor of the slow average. 5, optax's; 4 to 10 in the paper, which also raises α and β₃ to
            these values by schedules over the whole training: give schedules for both.
        weight_decay, decay_mask: as in ``adamw``; none here.

    When to use: long trainings of large models.

    Source: Pagliardini, Ablin & Grangier (2024), "The AdEMAMix optimizer: better, faster, older".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.ademamix(1e-3).rules][:4]
    ['momentum', 'rms', 'debias', 'add_momentum']
    """
    direction = chain(momentum(b1), rms(b2), debias(), add_momentum(b3, alpha), precondition(eps))
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """Adan: Adam with Nesterov's gradient, g + β₂(g − g₋), in the second moment and, averaged, in the first.

    For β₁ = β₂ it is Adam on that gradient.

    Args:
        learning_rate: η.
        b1, b2, b3: decays of m, of the differences and of v in [0, 1). 0.98, 0.92 and 0.99 as in the paper, which
            writes 1−β for them.
        eps: ε outside the root.
        weight_decay, decay_mask: as in ``adamw``; none here. (The paper's decay is implicit: w/(1 + ηλ).)

    When to use: large models and large batches, if memory is not short.

    Source: Xie et al. (2022), "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.adan(1e-3).rules]
    ['momentum', 'debias', 'add_difference', 'rms', 'debias', 'precondition', 'scale_by_learning_rate']
    """
    averages = chain(momentum(b1), debias(), add_difference(b2), rms(b3), debias())
    decay = decoupled(weight_decay, decay_mask)
    return chain(averages, precondition(eps), *decay, scale_by_learning_rate(learning_rate))


def mars(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.99,
    gamma: Hyper = 0.025,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """MARS-AdamW: AdamW on a gradient corrected by its last change, g + γβ₁/(1−β₁)·(g − g₋), clipped to norm 1.

    Args:
        learning_rate: η; 3e-3 in the paper.
        b1, b2: β₁ and β₂ in [0, 1). 0.95 and 0.99 as in the paper.
        gamma: γ ≥ 0, the strength of the correction. 0.025 as in the paper; 1−β₁ without the clip is Nesterov's.
        eps: ε outside the root.
        weight_decay, decay_mask: as in ``adamw``; none here.

    Every leaf gets the correction; its authors leave vectors to plain AdamW (see ``partition``).

    When to use: large models whose gradients are noisy.

    Source: Yuan et al. (2024), "MARS: unleashing the power of variance reduction for training large models".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.mars(1e-3).rules][:3]
    ['seal', 'momentum', 'rms']
    """
    factor = derived(lambda gamma, b1: gamma * b1 / (1 - b1), gamma, b1)
    corrected = seal(chain(extrapolate(factor), clip_by_norm(1.0)))
    direction = chain(corrected, momentum(b1), rms(b2), debias(), precondition(eps))
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))
