"""optax's optimizers, with optax's argument names, defaults and order (optax 0.2.8).

What is optax's own: AMSGrad takes the maximum of the debiased second moment; RMSProp has its epsilon inside the root
and its learning rate inside the momentum, while SGD has it outside; Nadam's momentum has no schedule; weight decay
is decoupled.

Where gradtx differs: ``clip_by_global_norm`` makes every leaf NaN for a gradient that is not finite, where optax
leaves zeros beside the NaN; and arithmetic is never in half precision.
"""

from __future__ import annotations

from gradtx import optimizers, rules
from gradtx._chain import Chain, chain
from gradtx._rule import Hyper, Rule

__all__ = ["adagrad", "adam", "adamw", "amsgrad", "clip", "clip_by_global_norm", "nadam", "nadamw", "rmsprop", "sgd"]

sgd = optimizers.sgd
adam = optimizers.adam
adamw = optimizers.adamw
nadam = optimizers.nadam
nadamw = optimizers.nadamw


def adagrad(learning_rate: Hyper, initial_accumulator_value: Hyper = 0.1, eps: Hyper = 1e-7) -> Chain:
    """optax.adagrad: sum, division with epsilon inside the root, learning rate.

    Args:
        learning_rate: η.
        initial_accumulator_value: what the sum starts at.
        eps: ε, inside the root.

    >>> from gradtx.dialects import optax
    >>> print(optax.adagrad(0.1))
    adagrad_sum(0.1) → precondition(0, 1e-07) → scale_by_learning_rate(0.1)
    """
    return optimizers.adagrad(learning_rate, initial_accumulator_value, eps=0.0, eps_root=eps)


def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Chain:
    """optax.rmsprop: RMS, [debias,] division, learning rate, [heavy ball].

    Args:
        learning_rate: η, inside the momentum.
        decay: β of the average.
        eps: ε.
        eps_in_sqrt: whether ε stands inside the root.
        centered: whether to divide by the root of the variance.
        momentum: μ of a heavy ball, or None.
        nesterov: whether the momentum looks ahead.
        bias_correction: whether to debias the average; not together with ``centered``.

    Raises:
        ValueError: for ``centered`` with ``bias_correction`` (optax debiases both of its averages: write the chain),
            or ``nesterov`` without momentum.

    >>> from gradtx.dialects import optax
    >>> print(optax.rmsprop(0.1, momentum=0.9))
    rms(0.9) → precondition(0, 1e-08) → scale_by_learning_rate(0.1) → trace(0.9, False)
    """
    if centered and bias_correction:
        raise ValueError("optax.rmsprop: centered=True with bias_correction=True is not an order of these rules")
    eps_out, eps_root = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    plain = optimizers.rmsprop(learning_rate, decay, eps_out, eps_root, momentum, nesterov, centered)
    if not bias_correction:
        return plain
    second_moment, *rest = plain.rules
    return chain(second_moment, rules.debias(), *rest)


def amsgrad(
    learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8, eps_root: Hyper = 0.0
) -> Chain:
    """optax.amsgrad: moments, debias, and the maximum of the debiased second moment.

    Args:
        learning_rate: η.
        b1: the decay of the first moment.
        b2: the decay of the second moment.
        eps: ε outside the root.
        eps_root: ε inside the root.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.amsgrad(0.1).rules][:4]
    ['momentum', 'rms', 'debias', 'max_v']
    """
    averages = chain(rules.momentum(b1), rules.rms(b2), rules.debias(), rules.max_v())
    return chain(averages, rules.precondition(eps, eps_root), rules.scale_by_learning_rate(learning_rate))


def clip(max_delta: Hyper) -> Rule:
    """optax.clip: each element to [−max_delta, max_delta].

    >>> from gradtx.dialects import optax
    >>> optax.clip(1.0)
    clip_by_value(limit=1.0)
    """
    return rules.clip_by_value(max_delta)


def clip_by_global_norm(max_norm: Hyper) -> Rule:
    """optax.clip_by_global_norm: all leaves together, to a joint L2 norm of at most max_norm.

    >>> from gradtx.dialects import optax
    >>> optax.clip_by_global_norm(1.0)
    clip_by_global_norm(limit=1.0)
    """
    return rules.clip_by_global_norm(max_norm)
