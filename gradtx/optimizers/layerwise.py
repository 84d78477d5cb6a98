"""Optimizers whose steps are scaled layer by layer."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import (
    cautious,
    clip_by_rms,
    debias,
    decay_weights,
    momentum,
    precondition,
    rms,
    scale_by_factored_rms,
    scale_by_gradient_norm,
    scale_by_learning_rate,
    scale_by_parameter_rms,
    scale_by_sm3,
    scale_by_trust_ratio,
    trace,
)
from gradtx.rules.base import Hyper

__all__ = ["adafactor", "cautious_adamw", "fromage", "lamb", "lars", "novograd", "sm3"]


def lars(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    coefficient: Hyper = 0.001,
    weight_decay: Hyper = 0.0,
    eps: Hyper = 0.0,
    decay_mask: Select = None,
    trust_mask: Select = None,
) -> Chain:
    """LARS: SGD with momentum, each leaf's step a share of its weights' norm.

    Args:
        learning_rate: η, inside the momentum as in the paper.
        decay: μ of the heavy ball in [0, 1). 0.9 as in the paper.
        coefficient: c of the trust ratio. 0.001 as in the paper.
        weight_decay: λ, added to the gradient before the ratio is taken. (The paper takes ‖g‖ + λ‖p‖ for its norm.)
        eps: ε of the trust ratio.
        decay_mask, trust_mask: which leaves decay, and which are scaled, selectors as of ``where``; None: all.
            Biases and norms are often left out of both.

    When to use: convolutional networks with very large batches.

    Source: You, Gitman & Ginsburg (2017), "Large batch training of convolutional networks".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.lars(0.1).rules]
    ['scale_by_trust_ratio', 'scale_by_learning_rate', 'trace']
    """
    ratio = scale_by_trust_ratio(coefficient, eps, where=trust_mask)
    return chain(*decoupled(weight_decay, decay_mask), ratio, scale_by_learning_rate(learning_rate), trace(decay))


def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
    trust_mask: Select = None,
) -> Chain:
    """LAMB: AdamW, each leaf's step as long as its weights are.

    Args:
        learning_rate: η.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in the paper.
        eps: ε outside the root. 1e-6 as in the paper.
        weight_decay: λ, inside the trust ratio as in the paper.
        decay_mask, trust_mask: which leaves decay, and which are scaled, selectors as of ``where``; None: all.

    When to use: transformers with very large batches.

    Source: You et al. (2020), "Large batch optimization for deep learning: training BERT in 76 minutes".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.lamb(1e-3).rules][-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    direction = chain(momentum(b1), rms(b2), debias(), precondition(eps), *decoupled(weight_decay, decay_mask))
    return chain(direction, scale_by_trust_ratio(where=trust_mask), scale_by_learning_rate(learning_rate))


def cautious_adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    decay_mask: Select = None,
) -> Chain:
    """C-AdamW: AdamW without the elements whose momentum disagrees with this gradient.

    Args:
        learning_rate: η.
        b1, b2, eps, weight_decay, decay_mask: as in ``adamw``.

    When to use: wherever AdamW is, for about the same price. Any other optimizer is made cautious likewise, by one
    rule before the decay.

    Source: Liang et al. (2024), "Cautious optimizers: improving training with one line of code".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.cautious_adamw(1e-3).rules][3:]
    ['precondition', 'cautious', 'add_decayed_weights', 'scale_by_learning_rate']
    """
    direction = chain(momentum(b1), rms(b2), debias(), precondition(eps), cautious())
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def adafactor(
    learning_rate: Hyper = 1e-2,
    power: float = 0.8,
    clip: Hyper | None = 1.0,
    b1: Hyper | None = None,
    weight_decay: Hyper = 0.0,
    least: int = 128,
    decay_mask: Select = None,
) -> Chain:
    """Adafactor: RMSProp that holds rows and columns of the second moment only, with steps relative to the weights.

    Hardly any state without momentum: a matrix of n by m has n + m numbers.

    Args:
        learning_rate: η, a share of the root mean square of the weights (of 1e-3 at least). 1e-2, the paper's bound; it
            takes min(1e-2, 1/√t), as a schedule ``lambda count: jnp.minimum(1e-2, (count + 1.0) ** -0.5)``.
        power: of the decay 1 − t^(−p). 0.8 as in the paper.
        clip: of the root mean square of each leaf's direction, 1 as in the paper; None: none.
        b1: β₁ of a momentum of the steps in [0, 1), or None for none, as in the paper.
        weight_decay: λ, decoupled; not relative to the weights' size.
        least: the least size of both axes for a leaf to be factored. 128 as in optax.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: where Adam's state does not fit.

    Source: Shazeer & Stern (2018), "Adafactor: adaptive learning rates with sublinear memory cost".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.adafactor().rules][:3]
    ['scale_by_factored_rms', 'clip_by_rms', 'scale_by_parameter_rms']
    """
    clips = [] if clip is None else [clip_by_rms(clip)]
    average = [] if b1 is None else [momentum(b1)]
    direction = chain(scale_by_factored_rms(power, least=least), *clips, scale_by_parameter_rms(), *average)
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.98,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """NovoGrad: SGD with momentum, each leaf's gradient divided by the average of its norm.

    Args:
        learning_rate: η; 0.01 in the paper.
        b1: β₁ of the heavy ball in [0, 1). 0.95 as in the paper; optax has 0.9.
        b2: β₂ of the squared norms in [0, 1). 0.98 as in the paper; optax has 0.25. The average starts at the first.
        eps: ε outside the root. 1e-8.
        weight_decay: λ, before the momentum as in the paper.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: large batches, with one number for each leaf where Adam has an array.

    Source: Ginsburg et al. (2019), "Stochastic gradient methods with layer-wise adaptive moments for training of deep
    networks".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.novograd(0.01).rules]
    ['scale_by_gradient_norm', 'trace', 'scale_by_learning_rate']
    """
    direction = chain(scale_by_gradient_norm(b2, eps), *decoupled(weight_decay, decay_mask), trace(b1))
    return chain(direction, scale_by_learning_rate(learning_rate))


def fromage(learning_rate: Hyper, floor: Hyper = 0.0) -> Chain:
    """Fromage: steps as long as η times the weights, and weights back to their length; w ← (w − η‖w‖u/‖u‖)/√(1+η²).

    Args:
        learning_rate: η, the relative change of each leaf in a step; 0.01 in the paper. In the state are η/√(1+η²) and
            1 − 1/√(1+η²), for ``set_hyperparams`` to change together.
        floor: the least norm of weights and gradients. 0: weights of 0 step by η√(1+η²)⁻¹g; optax has 1e-6.

    When to use: where no learning rate is known at all: 0.01 moves every layer by a hundredth.

    Source: Bernstein et al. (2020), "On the distance between two neural networks and the stability of learning".

    >>> import gradtx
    >>> print(gradtx.fromage(0.01))
    scale_by_trust_ratio(1, 0, 0) → scale_by_learning_rate(0.0099995) → decay_weights(1, 4.99963e-05)
    """
    rate = derived(lambda learning_rate: learning_rate / (1 + learning_rate**2) ** 0.5, learning_rate)
    shrink = derived(lambda learning_rate: 1 - 1 / (1 + learning_rate**2) ** 0.5, learning_rate)
    return chain(scale_by_trust_ratio(floor=floor), scale_by_learning_rate(rate), decay_weights(1.0, shrink))


def sm3(learning_rate: Hyper, b1: Hyper = 0.9, eps: Hyper = 1e-8) -> Chain:
    """SM3: AdaGrad that holds a number for each row and column, and momentum.

    Args:
        learning_rate: η; 0.1 to 0.3 in the paper.
        b1: β₁ of the momentum of the divided gradients in [0, 1). 0.9 as in the paper.
        eps: ε inside the root. 1e-8 as in optax; the paper has none.

    When to use: sparse gradients, as of embeddings, where AdaGrad's state does not fit.

    Source: Anil et al. (2019), "Memory-efficient adaptive optimization".

    >>> import gradtx
    >>> print(gradtx.sm3(0.1))
    scale_by_sm3(1e-08) → momentum(0.9) → scale_by_learning_rate(0.1)
    """
    return chain(scale_by_sm3(eps), momentum(b1), scale_by_learning_rate(learning_rate))
