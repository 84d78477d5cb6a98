"""optax's relatives of Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import is_zero, steps
from gradtx.dialects.optax._parts import adam_direction, first_moment, start_averages, unmasked
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper

__all__ = [
    "acprop",
    "adabelief",
    "adadelta",
    "adamax",
    "adamaxw",
    "adan",
    "ademamix",
    "adopt",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "radam",
    "simplified_ademamix",
    "yogi",
]


def adamax(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> Chain:
    """optax.adamax: momentum over the infinity norm of the gradients, which has epsilon in it.

    Args:
        learning_rate: η.
        b1: the decay of the first moment.
        b2: the decay of the infinity norm.
        eps: ε, added to each |g|.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adamax(0.1).rules]
    ['momentum', 'infinity', 'debias', 'precondition', 'scale_by_learning_rate']
    """
    return adamaxw(learning_rate, b1, b2, eps, 0.0)


def adamaxw(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    mask: Select = None,
) -> Chain:
    """optax.adamaxw: ``adamax`` with decoupled decay, 1e-4 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        b1, b2, eps: as in ``adamax``.
        weight_decay: λ.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adamaxw(0.1).rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    averages = chain(rules.momentum(b1), rules.infinity(b2, eps, power=1), rules.debias())
    direction = chain(averages, rules.precondition(0.0, power=1))
    return chain(direction, *decoupled(weight_decay, unmasked(mask)), rules.scale_by_learning_rate(learning_rate))


def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
) -> Chain:
    """optax.adabelief: Adam divided by how far gradients are from their average.

    Args:
        learning_rate: η.
        b1, b2: decays of the average and of the squared distance.
        eps: ε outside the root.
        eps_root: added to the squared distance in each step, so it accumulates.
        nesterov: whether the direction is Nadam's; then with a b1 greater than 0. The distance to the average of
            before is that to the average of now, divided by b1.

    >>> from gradtx.dialects import optax
    >>> print(optax.adabelief(0.1))
    belief_rms(0.9, 0.999, 1e-16, False) → debias() → precondition(1e-16, 0) → scale_by_learning_rate(0.1)
    """
    if not nesterov:
        direction = chain(rules.belief_rms(b1, b2, eps_root), rules.debias(), rules.precondition(eps))
    else:
        added, floor = derived(lambda e, b: e / b**2, eps_root, b1), derived(lambda e, b: e / b, eps, b1)
        averages = chain(rules.nesterov(b1), rules.belief_rms(b1, b2, added, lagged=True), rules.debias())
        direction = chain(averages, rules.precondition(floor), rules.scale(derived(lambda b: 1 / b, b1)))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def acprop(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.contrib.acprop: the gradient divided by how far those before it were from their average.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adabelief``.
        weight_decay, mask: as in ``adamw``; none here.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.acprop(0.1).rules]
    ['belief_rms', 'debias', 'lag_v', 'precondition', 'scale_by_learning_rate']
    """
    distance = chain(rules.belief_rms(b1, b2, eps_root, lagged=True), rules.debias(), rules.lag_v("one"))
    decay = decoupled(weight_decay, unmasked(mask))
    return chain(distance, rules.precondition(eps), *decay, rules.scale_by_learning_rate(learning_rate))


def adadelta(
    learning_rate: Hyper | None = None,
    rho: Hyper = 0.9,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Select = None,
) -> Chain:
    """optax.adadelta: [coupled decay,] RMS, division, root of the mean square of updates, learning rate.

    Args:
        learning_rate: η. None, the default: the direction alone, which is uphill, as in optax; ``scale(-0.1)`` behind
            it goes down.
        rho: ρ of both averages.
        eps: ε inside both roots.
        weight_decay: λ of coupled decay.
        weight_decay_mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> print(optax.adadelta(1.0))
    rms(0.9) → precondition(0, 1e-06) → scale_by_update_rms(0.9, 1e-06) → scale_by_learning_rate(1)
    """
    step = [] if learning_rate is None else [rules.scale_by_learning_rate(learning_rate)]
    direction = chain(rules.rms(rho), rules.precondition(0.0, eps), rules.scale_by_update_rms(rho, eps))
    return chain(*decoupled(weight_decay, unmasked(weight_decay_mask)), direction, *step)


def yogi(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-3) -> Chain:
    """optax.yogi: Adam with Yogi's second moment; both averages start at 1e-6.

    Args:
        learning_rate: η.
        b1: the decay of the first moment.
        b2: that of the second.
        eps: ε outside the root.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.yogi(0.1).rules][:4]
    ['momentum', 'start_averages', 'yogi_rms', 'debias']
    """
    averages = chain(rules.momentum(b1), start_averages(1e-6), rules.yogi_rms(b2, 1e-6), rules.debias())
    return chain(averages, rules.precondition(eps), rules.scale_by_learning_rate(learning_rate))


def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: float = 5.0,
    *,
    nesterov: bool = False,
) -> Chain:
    """optax.radam: Adam that goes by its momentum alone until its second moment is to be relied on.

    Args:
        learning_rate: η.
        b1, b2, eps, nesterov: as in ``adam``.
        eps_root: ε inside the root.
        threshold: of the number of gradients that the second moment averages.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.radam(0.1).rules][:4]
    ['momentum', 'rms', 'debias', 'rectified_precondition']
    """
    averages = chain(first_moment(b1, None, nesterov), rules.rms(b2), rules.debias())
    inside = None if is_zero(eps_root) else eps_root
    direction = chain(averages, rules.rectified_precondition(b2, eps, threshold, inside))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def _optimistic(alpha: Hyper, beta: Hyper) -> Chain:
    """αu + β(u − u₋), the first u₋ being u."""
    if is_zero(alpha):
        raise ValueError("optax: an optimistic method with alpha=0 stands still at a constant gradient; give another")
    gain = [] if isinstance(alpha, int | float) and alpha == 1 else [rules.scale(alpha)]
    return chain(rules.extrapolate(derived(lambda a, b: b / a, alpha, beta), "same"), *gain)


def optimistic_gradient_descent(learning_rate: Hyper, alpha: Hyper = 1.0, beta: Hyper = 1.0) -> Chain:
    """optax.optimistic_gradient_descent: αg + β(g − g₋), learning rate.

    Args:
        learning_rate: η.
        alpha: α, other than 0.
        beta: β.

    Raises:
        ValueError: for an α of 0.

    >>> from gradtx.dialects import optax
    >>> print(optax.optimistic_gradient_descent(0.1))
    extrapolate(1, 'same') → scale_by_learning_rate(0.1)
    """
    return chain(_optimistic(alpha, beta), rules.scale_by_learning_rate(learning_rate))


def optimistic_adam_v2(
    learning_rate: Hyper,
    *,
    alpha: Hyper = 1.0,
    beta: Hyper = 1.0,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = True,
) -> Chain:
    """optax.optimistic_adam_v2: αu + β(u − u₋) of Nadam's direction u, learning rate.

    Args:
        learning_rate: η.
        alpha, beta: as in ``optimistic_gradient_descent``.
        b1, b2, eps, eps_root, mu_dtype, nesterov: as in ``nadam``.

    Raises:
        ValueError: for an α of 0.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.optimistic_adam_v2(0.1).rules][-2:]
    ['extrapolate', 'scale_by_learning_rate']
    """
    direction = chain(adam_direction(b1, b2, eps, eps_root, mu_dtype, nesterov), _optimistic(alpha, beta))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.adan: Adan with the factor 1 − b2 where the paper, and ``gradtx.adan``, have b2.

    Args:
        learning_rate: η.
        b1, b2, b3: decays of the gradients, of their differences and of the squares.
        eps, eps_root: ε outside and inside the root.
        weight_decay, mask: as in ``adamw``; none here.

    >>> from gradtx.dialects import optax
    >>> print(optax.adan(0.1).rules[2])
    add_difference(0.92, 0.08)
    """
    difference = rules.add_difference(b2, derived(lambda b: 1 - b, b2))
    averages = chain(rules.momentum(b1), rules.debias(), difference, rules.rms(b3), rules.debias())
    direction = chain(averages, rules.precondition(eps, eps_root), *decoupled(weight_decay, unmasked(mask)))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    mu_dtype: Any = None,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.contrib.ademamix: Adam with a second, much slower momentum.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adam``.
        b3: the decay of the slow average.
        alpha: its factor.
        mu_dtype: the dtype that all three averages are held in; None: the parameters'.
        weight_decay, mask: as in ``adamw``; none here.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.ademamix(0.1).rules][:4]
    ['momentum', 'rms', 'debias', 'add_momentum']
    """
    averages = chain(rules.momentum(b1, state_dtype=mu_dtype), rules.rms(b2, state_dtype=mu_dtype), rules.debias())
    slow = rules.add_momentum(b3, alpha, state_dtype=mu_dtype)
    direction = chain(averages, slow, rules.precondition(eps, eps_root), *decoupled(weight_decay, unmasked(mask)))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def simplified_ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.99,
    b2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.contrib.simplified_ademamix: heavy ball and α times the gradient, over the root of the second moment.

    The sum is ``quasi_hyperbolic`` with the share 1/(1 + α), times 1 + α.

    Args:
        learning_rate: η.
        b1: μ of the heavy ball, which is not debiased.
        b2: the decay of the second moment.
        alpha: α ≥ 0.
        eps, eps_root: as in ``adam``.
        weight_decay, mask: as in ``adamw``; none here.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.simplified_ademamix(0.1).rules][:4]
    ['rms', 'debias', 'trace', 'precondition']
    """
    share, gain = derived(lambda a: 1 / (1 + a), alpha), derived(lambda a: 1 + a, alpha)
    mixture = [] if is_zero(alpha) else [rules.quasi_hyperbolic(share), rules.scale(gain)]
    averages = chain(rules.rms(b2), rules.debias(), rules.trace(b1), *mixture)
    direction = chain(averages, rules.precondition(eps, eps_root), *decoupled(weight_decay, unmasked(mask)))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def _fourth_root(count: jax.Array) -> jax.Array:
    return steps(count) ** 0.25


def adopt(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], jax.Array] = _fourth_root,
) -> Chain:
    """optax.contrib.adopt: the average of gradients divided by the second moment of before, and clipped.

    Args:
        learning_rate: η.
        b1, b2: decays of the average and of the second moment.
        eps: ε, a floor of the root.
        mu_dtype: the dtype that the average is held in; None: the parameters'.
        nesterov: whether the average looks ahead.
        use_clipping: whether to clip.
        clip_value_fn: the limit as a function of the count of steps; its fourth root.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adopt(0.1).rules]
    ['rms', 'lag_v', 'precondition', 'clip_by_value', 'momentum', 'scale_by_learning_rate']
    """
    divided = chain(rules.rms(b2, start="first"), rules.lag_v(), rules.precondition(eps, form="max"))
    clips = [rules.clip_by_value(clip_value_fn)] if use_clipping else []
    if nesterov:  # βm + (1−β)u is 1−β times the heavy ball that looks ahead
        average = [rules.trace(b1, True, state_dtype=mu_dtype), rules.scale(derived(lambda b: 1 - b, b1))]
    else:
        average = [rules.momentum(b1, state_dtype=mu_dtype)]
    return chain(divided, *clips, *average, rules.scale_by_learning_rate(learning_rate))
