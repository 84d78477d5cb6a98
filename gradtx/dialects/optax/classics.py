"""optax's SGD to Nadam, and its clips."""

from __future__ import annotations

from typing import Any

from gradtx import optimizers, rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import is_zero, steps
from gradtx.dialects.optax._parts import adam_direction, start_averages, unmasked
from gradtx.optimizers._parts import derived
from gradtx.rules.base import Hyper, Rule

__all__ = ["adagrad", "adam", "adamw", "amsgrad", "clip", "clip_by_global_norm", "nadam", "nadamw", "rmsprop", "sgd"]


def sgd(
    learning_rate: Hyper, momentum: Hyper | None = None, nesterov: bool = False, accumulator_dtype: Any = None
) -> Chain:
    """optax.sgd: [heavy ball,] learning rate.

    Args:
        learning_rate: η, outside the momentum.
        momentum: μ of a heavy ball, or None.
        nesterov: whether the momentum looks ahead; without momentum it does nothing, as in optax.
        accumulator_dtype: the dtype that the heavy ball is held in; None: the parameters'.

    >>> from gradtx.dialects import optax
    >>> print(optax.sgd(0.1, momentum=0.9))
    trace(0.9, False) → scale_by_learning_rate(0.1)
    """
    heavy_ball = [] if momentum is None else [rules.trace(momentum, nesterov, state_dtype=accumulator_dtype)]
    return chain(*heavy_ball, rules.scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Chain:
    """optax.adam: moments, debias, division, learning rate.

    Args:
        learning_rate: η.
        b1: the decay of the first moment.
        b2: the decay of the second moment.
        eps: ε outside the root.
        eps_root: ε inside the root.
        mu_dtype: the dtype that the first moment is held in; None: the parameters'.
        nesterov: whether the first moment is Nadam's.

    >>> from gradtx.dialects import optax
    >>> print(optax.adam(0.001))
    momentum(0.9) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.001)
    """
    return chain(adam_direction(b1, b2, eps, eps_root, mu_dtype, nesterov), rules.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-4,
    mask: Select = None,
    *,
    nesterov: bool = False,
) -> Chain:
    """optax.adamw: ``adam`` with decoupled decay, 1e-4 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in ``adam``.
        weight_decay: λ.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adamw(0.001).rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    decay = rules.add_decayed_weights(weight_decay, where=unmasked(mask))
    direction = adam_direction(b1, b2, eps, eps_root, mu_dtype, nesterov)
    return chain(direction, decay, rules.scale_by_learning_rate(learning_rate))


def nadam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
) -> Chain:
    """optax.nadam: ``adam`` with Nadam's first moment, without a schedule of it.

    Args:
        learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov: as in ``adam``.

    >>> from gradtx.dialects import optax
    >>> print(optax.nadam(0.001))
    nesterov(0.9) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.001)
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)


def nadamw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-4,
    mask: Select = None,
    *,
    nesterov: bool = True,
) -> Chain:
    """optax.nadamw: ``adamw`` with Nadam's first moment.

    Args:
        learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov: as in ``adamw``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.nadamw(0.001).rules][::4]
    ['nesterov', 'add_decayed_weights']
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)


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
    initial_scale: Hyper = 0.0,
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
        initial_scale: what the average starts at.
        eps_in_sqrt: whether ε stands inside the root.
        centered: whether to divide by the root of the variance.
        momentum: μ of a heavy ball, or None.
        nesterov: whether the momentum looks ahead; without momentum it does nothing, as in optax.
        bias_correction: whether to debias the average. With ``centered`` that is a decay of β(1−βᵗ)/(1−βᵗ⁺¹), 0 at
            first, in which mean and square are debiased each by itself; an ``initial_scale`` s then adds sβᵗ/(1−βᵗ).

    >>> from gradtx.dialects import optax
    >>> print(optax.rmsprop(0.1, momentum=0.9))
    rms(0.9) → precondition(0, 1e-08) → scale_by_learning_rate(0.1) → trace(0.9, False)
    """
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    start = [] if is_zero(initial_scale) else [start_averages(0.0, initial_scale)]
    if centered and bias_correction:
        if start:
            started = lambda e, s, b, count: e + s * b ** (count + 1) / (1 - b ** (count + 1))  # noqa: E731
            start, inside = [], derived(started, inside, initial_scale, decay, steps)
        decay = derived(lambda b, count: b * (1 - b**count) / (1 - b ** (count + 1)), decay, steps)
    second_moment = rules.centered_rms(decay) if centered else rules.rms(decay)
    debias = [rules.debias()] if bias_correction else []
    quotient = rules.precondition(outside, inside)
    direction = chain(second_moment, *start, *debias, quotient)
    heavy_ball = [] if momentum is None else [rules.trace(momentum, nesterov)]
    return chain(direction, rules.scale_by_learning_rate(learning_rate), *heavy_ball)


def amsgrad(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Chain:
    """optax.amsgrad: moments, debias, and the maximum of the debiased second moment.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root, mu_dtype: as in ``adam``.
        bias_correction_mu: whether to debias the first moment.
        bias_correction_nu: whether to debias the second moment. Neither: the paper's.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.amsgrad(0.1).rules][:4]
    ['momentum', 'rms', 'debias', 'max_v']
    """
    first, second = rules.momentum(b1, state_dtype=mu_dtype), rules.rms(b2)
    averages = {
        (True, True): [first, second, rules.debias(), rules.max_v()],
        (True, False): [first, rules.debias(), second, rules.max_v()],
        (False, True): [second, rules.debias(), rules.max_v(), first],
        (False, False): [first, second, rules.max_v()],
    }[bool(bias_correction_mu), bool(bias_correction_nu)]
    return chain(*averages, rules.precondition(eps, eps_root), rules.scale_by_learning_rate(learning_rate))


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
