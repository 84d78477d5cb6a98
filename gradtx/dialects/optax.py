"""optax's optimizers, with optax's argument names, defaults and order (optax 0.2.8); those of ``optax.contrib`` too.

What is optax's own: AMSGrad takes the maximum of the debiased second moment; RMSProp has its epsilon inside the root
and its learning rate inside the momentum, while SGD has it outside; Nadam's momentum has no schedule; weight decay
is decoupled, except in AdaDelta; Muon's momentum is Nadam's; schedule-free methods read the schedule one step ahead
for their weights; Yogi's averages start at 1e-6; Adan takes 1 − b2 where its paper has b2.

``mask`` and ``weight_decay_mask`` are trees of booleans, functions that make them, or selectors as of ``where``.
``mu_dtype`` and the like are the ``state_dtype`` of the rule that holds the average.

Where gradtx differs: ``clip_by_global_norm`` makes every leaf NaN for a gradient that is not finite, where optax
leaves zeros beside the NaN; arithmetic is never in half precision; Adafactor's decay is a float64 where parameters
are, and a float32 in optax.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx import optimizers, rules
from gradtx._chain import Chain, chain
from gradtx._core.contract import Tick
from gradtx._core.selectors import Select
from gradtx._wrappers.partition import partition
from gradtx.dialects._arguments import is_zero, missing
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = [
    "acprop",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "clip",
    "clip_by_global_norm",
    "cocob",
    "dog",
    "dowg",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "madgrad",
    "momo",
    "momo_adam",
    "muon",
    "nadam",
    "nadamw",
    "novograd",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "prodigy",
    "radam",
    "rmsprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "yogi",
]

_ELSEWHERE = "no chain of rules. Seal optax's own into a chain: gradtx.seal(optax.{})"
_INSTEAD = {
    "rprop": "optax's returns the update of the step before. Use gradtx.rprop, which is torch's and the paper's",
    "optimistic_adam": "optax deprecates it. Use optimistic_adam_v2",
    "lookahead": "use the rule gradtx.lookahead as the last one of a chain",
    "schedule_free": "use schedule_free_sgd or schedule_free_adamw, or end a chain with gradtx.average_iterates",
    "schedule_free_eval_params": "use gradtx.evaluation_point(state, params)",
    "chain": "use gradtx.chain",
    "named_chain": "use gradtx.chain(..., name=...)",
    "partition": "use gradtx.partition",
    "multi_transform": "use gradtx.partition",
    "masked": "use gradtx.where",
    "multisteps": "use gradtx.accumulate",
    "apply_if_finite": "use gradtx.skip_nonfinite",
    "adaptive_grad_clip": "use the rule gradtx.adaptive_clip in front of a chain",
    "add_noise": "use the rule gradtx.add_noise, whose noise is another",
    "noisy_sgd": "use gradtx.add_noise in front of gradtx.sgd; the noise is another",
    "centralize": "use the rule gradtx.centralize(output=0): optax keeps the first axis",
    "sam": "use gradtx.ascent_point, and take the second gradient there",
    "inject_hyperparams": "every chain has its hyperparameters in its state: use gradtx.set_hyperparams",
    **{name: _ELSEWHERE.format(name + "(...)") for name in ("lbfgs",)},
    **{
        name: _ELSEWHERE.format(f"contrib.{name}(...)")
        for name in (*("dadapt_adamw", "galore", "mechanize", "sophia"),)
    },
}


def __getattr__(name: str) -> Any:
    missing("optax", name, __all__, _INSTEAD)


class start_averages(Rule):
    r"""Averages as if they had started elsewhere than at 0: u ← u + (1−w_u)u₀; v ← v + (1−w_v)v₀.

    The weight that an average lacks of 1 is that of its start. Right after the averages, before ``debias``.

    Args:
        u0: u₀.
        v0: v₀ ≥ 0.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.optax import start_averages
    >>> tx, g = gradtx.chain(gradtx.momentum(0.9), start_averages(2.0)), jnp.array([1.0])
    >>> print(tx.update(g, tx.init(g))[0])  # 0.9·2 + 0.1·1
    [1.9]
    """

    equation = r"u \leftarrow u + (1 - w_u) u_0, \quad v \leftarrow v + (1 - w_v) v_0"

    u0: Hyper = hyper(default=0.0)
    v0: Hyper = hyper(default=0.0, low=0)

    def tick(self, h, scalars, weights, count):
        starts = {"u": (1 - weights.direction) * h.u0, "v": (1 - weights.second_moment) * h.v0}
        return Tick(starts, {}, weights)

    def apply(self, signal, slots, param, c):
        v = None if signal.second_moment is None else signal.second_moment + c.v
        return signal._replace(direction=signal.direction + c.u, second_moment=v), {}


def _unmasked(mask: Select) -> Select:
    """No mask where optax has True for all leaves."""
    return None if mask is True else mask


def _first_moment(b1: Hyper, mu_dtype: Any, nesterov: bool) -> Rule:
    """The average of Adam, or that of Nadam, which is debiased already."""
    maker = rules.nesterov if nesterov else rules.momentum
    return maker(b1, state_dtype=mu_dtype)


def _adam(b1: Hyper, b2: Hyper, eps: Hyper, eps_root: Hyper, mu_dtype: Any, nesterov: bool) -> Chain:
    averages = chain(_first_moment(b1, mu_dtype, nesterov), rules.rms(b2))
    return chain(averages, rules.debias(), rules.precondition(eps, eps_root))


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


def sign_sgd(learning_rate: Hyper) -> Chain:
    """optax.sign_sgd: the sign of the gradient.

    >>> from gradtx.dialects import optax
    >>> print(optax.sign_sgd(0.1))
    sign() → scale_by_learning_rate(0.1)
    """
    return chain(rules.sign(), rules.scale_by_learning_rate(learning_rate))


def signum(learning_rate: Hyper, beta: Hyper = 0.9, accumulator_dtype: Any = None) -> Chain:
    """optax.signum: the sign of the momentum.

    Args:
        learning_rate: η.
        beta: β of the average.
        accumulator_dtype: as in ``sgd``.

    >>> from gradtx.dialects import optax
    >>> print(optax.signum(0.1))
    momentum(0.9) → sign() → scale_by_learning_rate(0.1)
    """
    average = rules.momentum(beta, state_dtype=accumulator_dtype)
    return chain(average, rules.sign(), rules.scale_by_learning_rate(learning_rate))


def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    mu_dtype: Any = None,
    weight_decay: Hyper = 1e-3,
    mask: Select = None,
) -> Chain:
    """optax.lion: the sign of a mixture of momentum and gradient, with decay 1e-3 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        b1: β₁ of the mixture.
        b2: β₂ of the momentum, greater than 0.
        mu_dtype: the dtype that the momentum is held in; None: the parameters'.
        weight_decay: λ.
        mask: which leaves decay; None: all.

    Raises:
        ValueError: for a β₂ of 0.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.lion(1e-4).rules][:3]
    ['momentum', 'quasi_hyperbolic', 'sign']
    """
    if is_zero(b2):
        raise ValueError("optax.lion: b2 must be greater than 0; with b2=0 take sign_sgd(learning_rate)")
    average = rules.momentum(b2, state_dtype=mu_dtype)
    mixture = rules.quasi_hyperbolic(derived(lambda b1, b2: b1 / b2, b1, b2))
    decay = decoupled(weight_decay, _unmasked(mask))
    return chain(average, mixture, rules.sign(), *decay, rules.scale_by_learning_rate(learning_rate))


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
    return chain(_adam(b1, b2, eps, eps_root, mu_dtype, nesterov), rules.scale_by_learning_rate(learning_rate))


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
    decay = rules.add_decayed_weights(weight_decay, where=_unmasked(mask))
    direction = _adam(b1, b2, eps, eps_root, mu_dtype, nesterov)
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
        bias_correction: whether to debias the average; not together with ``centered``.

    Raises:
        ValueError: for ``centered`` with ``bias_correction`` (optax debiases both of its averages: write the chain).

    >>> from gradtx.dialects import optax
    >>> print(optax.rmsprop(0.1, momentum=0.9))
    rms(0.9) → precondition(0, 1e-08) → scale_by_learning_rate(0.1) → trace(0.9, False)
    """
    if centered and bias_correction:
        raise ValueError("optax.rmsprop: centered=True with bias_correction=True is not an order of these rules")
    second_moment = rules.centered_rms(decay) if centered else rules.rms(decay)
    start = [] if is_zero(initial_scale) else [start_averages(0.0, initial_scale)]
    debias = [rules.debias()] if bias_correction else []
    quotient = rules.precondition(0.0, eps) if eps_in_sqrt else rules.precondition(eps)
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


def adamax(learning_rate: Hyper, b1: Hyper = 0.9, b2: Hyper = 0.999, eps: Hyper = 1e-8) -> Chain:
    """optax.adamax: momentum over the infinity norm of the gradients, which has epsilon in it.

    Args:
        learning_rate: η.
        b1: the decay of the first moment.
        b2: the decay of the infinity norm.
        eps: ε, added to each |g|.

    >>> from gradtx.dialects import optax
    >>> print(optax.adamax(0.1))
    momentum(0.9) → infinity(0.999, 1e-08) → debias() → precondition(0, 0) → scale_by_learning_rate(0.1)
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
    averages = chain(rules.momentum(b1), rules.infinity(b2, eps), rules.debias(), rules.precondition(0.0))
    return chain(averages, *decoupled(weight_decay, _unmasked(mask)), rules.scale_by_learning_rate(learning_rate))


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
    decay = decoupled(weight_decay, _unmasked(mask))
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
        learning_rate: η; optax has none by default, and then climbs: here that is an error.
        rho: ρ of both averages.
        eps: ε inside both roots.
        weight_decay: λ of coupled decay.
        weight_decay_mask: which leaves decay; None: all.

    Raises:
        ValueError: without a learning rate.

    >>> from gradtx.dialects import optax
    >>> print(optax.adadelta(1.0))
    rms(0.9) → precondition(0, 1e-06) → scale_by_update_rms(0.9, 1e-06) → scale_by_learning_rate(1)
    """
    if learning_rate is None:
        raise ValueError("optax.adadelta: give a learning rate, for example 1.0; without one optax's goes uphill")
    decay = decoupled(weight_decay, _unmasked(weight_decay_mask))
    return chain(*decay, optimizers.adadelta(learning_rate, rho, eps))


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
        eps_root: 0; any other is refused.
        threshold: of the number of gradients that the second moment averages.

    Raises:
        ValueError: for an ``eps_root`` that is not 0.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.radam(0.1).rules][:4]
    ['momentum', 'rms', 'debias', 'rectified_precondition']
    """
    if not is_zero(eps_root):
        raise ValueError("optax.radam: eps_root is not an argument of rectified_precondition; pass eps")
    averages = chain(_first_moment(b1, None, nesterov), rules.rms(b2), rules.debias())
    direction = chain(averages, rules.rectified_precondition(b2, eps, threshold))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Hyper | None = 1.0,
    momentum: Hyper | None = None,
    dtype_momentum: Any = jnp.float32,
    weight_decay_rate: Hyper | None = None,
    eps: float = 1e-30,
    factored: bool = True,
    weight_decay_mask: Select = None,
) -> Chain:
    """optax.adafactor: division by a factored second moment, clip, learning rate, weights' size, [average, decay].

    Args:
        learning_rate: η, inside the momentum and not on the decay; None: 1.
        min_dim_size_to_factor: the least size of both axes for a leaf to be factored.
        decay_rate: p of the decay 1 − t^(−p).
        decay_offset: 0; any other is refused.
        multiply_by_parameter_scale: whether steps are relative to the root mean square of the weights.
        clipping_threshold: of each leaf's root mean square, or None.
        momentum: β of an average of the steps, or None.
        dtype_momentum: the dtype that it is held in.
        weight_decay_rate: λ, which no learning rate multiplies, or None.
        eps: added to the squares.
        factored: whether to factor at all.
        weight_decay_mask: which leaves decay; None: all.

    Raises:
        ValueError: for a ``decay_offset`` that is not 0.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.adafactor(0.1).rules]
    ['scale_by_factored_rms', 'clip_by_rms', 'scale_by_learning_rate', 'scale_by_parameter_rms']
    """
    if not is_zero(decay_offset):
        raise ValueError("optax.adafactor: decay_offset is not an argument of scale_by_factored_rms; leave it 0")
    least = min_dim_size_to_factor if factored else sys.maxsize
    clips = [] if clipping_threshold is None else [rules.clip_by_rms(clipping_threshold)]
    rate = rules.scale(-1.0) if learning_rate is None else rules.scale_by_learning_rate(learning_rate)
    size = [rules.scale_by_parameter_rms()] if multiply_by_parameter_scale else []
    average = [] if momentum is None else [rules.momentum(momentum, state_dtype=dtype_momentum)]
    where = _unmasked(weight_decay_mask)
    decay = [] if weight_decay_rate is None else [rules.decay_weights(1.0, weight_decay_rate, where=where)]
    direction = chain(rules.scale_by_factored_rms(decay_rate, eps, least), *clips)
    return chain(direction, rate, *size, *average, *decay)


def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.lamb: Adam's direction, [decay,] as long as the leaf's weights, learning rate.

    Args:
        learning_rate: η.
        b1, b2, eps, eps_root: as in ``adam``.
        weight_decay: λ, inside the trust ratio.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.lamb(0.1).rules][-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    direction = chain(_adam(b1, b2, eps, eps_root, None, False), *decoupled(weight_decay, _unmasked(mask)))
    return chain(direction, rules.scale_by_trust_ratio(), rules.scale_by_learning_rate(learning_rate))


def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Select = True,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Select = True,
    momentum: Hyper = 0.9,
    nesterov: bool = False,
) -> Chain:
    """optax.lars: [decay,] a share of the leaf's weights' norm, learning rate, heavy ball.

    Args:
        learning_rate: η, inside the momentum.
        weight_decay: λ, inside the trust ratio.
        weight_decay_mask: which leaves decay; True: all.
        trust_coefficient: the share.
        eps: added to the norm of the direction.
        trust_ratio_mask: which leaves have a trust ratio; True: all.
        momentum: μ of the heavy ball.
        nesterov: whether it looks ahead.

    >>> from gradtx.dialects import optax
    >>> print(optax.lars(0.1))
    scale_by_trust_ratio(0.001, 0, 0) → scale_by_learning_rate(0.1) → trace(0.9, False)
    """
    ratio = rules.scale_by_trust_ratio(trust_coefficient, eps, where=_unmasked(trust_ratio_mask))
    direction = chain(*decoupled(weight_decay, _unmasked(weight_decay_mask)), ratio)
    return chain(direction, rules.scale_by_learning_rate(learning_rate), rules.trace(momentum, nesterov))


def fromage(learning_rate: Hyper, min_norm: Hyper = 1e-6) -> Chain:
    """optax.fromage: steps as long as the weights times η, and weights back to about their length.

    Args:
        learning_rate: η; the factor is 1/√(1 + η²).
        min_norm: the least norm of weights and directions.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.fromage(0.01).rules]
    ['scale_by_trust_ratio', 'scale_by_learning_rate', 'decay_weights']
    """
    return optimizers.fromage(learning_rate, min_norm)


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
    direction = chain(_adam(b1, b2, eps, eps_root, mu_dtype, nesterov), _optimistic(alpha, beta))
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
    direction = chain(averages, rules.precondition(eps, eps_root), *decoupled(weight_decay, _unmasked(mask)))
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
    direction = chain(averages, slow, rules.precondition(eps, eps_root), *decoupled(weight_decay, _unmasked(mask)))
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
    direction = chain(averages, rules.precondition(eps, eps_root), *decoupled(weight_decay, _unmasked(mask)))
    return chain(direction, rules.scale_by_learning_rate(learning_rate))


def _fourth_root(count: jax.Array) -> jax.Array:
    return count**0.25


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


def _schedule_free(
    direction: Sequence[Rule], learning_rate: Hyper, warmup_steps: int | None, b1: Hyper, power: float, state_dtype: Any
) -> Chain:
    """The direction, learning rate with warm-up, average weighted by the largest rate, which is read a step ahead."""
    if isinstance(power, bool) or not isinstance(power, int | float) or power < 0:
        raise ValueError(f"optax: weight_lr_power must be a number of 0 or more, found {power!r}")
    if warmup_steps is not None:
        learning_rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)  # pyright: ignore[reportArgumentType]
    ahead = learning_rate
    if callable(learning_rate):
        schedule = learning_rate
        ahead = lambda count: schedule(count + 1)  # noqa: E731
    weight = ahead if power == 2 else derived(lambda eta: eta ** (power / 2), ahead)
    average = rules.average_iterates(pull=b1, learning_rate=weight, state_dtype=state_dtype)
    return chain(*direction, rules.scale_by_learning_rate(learning_rate), average)


def schedule_free_sgd(
    learning_rate: Hyper = 1.0,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    weight_decay: Hyper | None = None,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> Chain:
    """optax.contrib.schedule_free_sgd: [decay,] learning rate, average of the iterates.

    ``evaluation_point(state, params)`` is what optax calls ``schedule_free_eval_params``.

    Args:
        learning_rate: η.
        warmup_steps: the length of a linear warm-up from 0, or None.
        b1: where between iterates (0) and average (1) the parameters are.
        weight_decay: λ, or None.
        weight_lr_power: the power of the largest rate that iterates are weighted by, ≥ 0.
        state_dtype: the dtype that the average is held in (as an offset; optax holds the iterate); None: the
            parameters'.

    Raises:
        ValueError: for a negative power.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.schedule_free_sgd().rules]
    ['scale_by_learning_rate', 'average_iterates']
    """
    decay = [] if weight_decay is None else [rules.add_decayed_weights(weight_decay)]
    return _schedule_free(decay, learning_rate, warmup_steps, b1, weight_lr_power, state_dtype)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> Chain:
    """optax.contrib.schedule_free_adamw: RMS, debias, division, [decay,] learning rate, average of the iterates.

    Args:
        learning_rate, warmup_steps, b1, weight_lr_power, state_dtype: as in ``schedule_free_sgd``.
        b2: the decay of the second moment.
        eps: ε outside the root.
        weight_decay: λ.

    Raises:
        ValueError: for a negative power.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.schedule_free_adamw().rules]
    ['rms', 'debias', 'precondition', 'scale_by_learning_rate', 'average_iterates']
    """
    direction = [rules.rms(b2), rules.debias(), rules.precondition(eps), *decoupled(weight_decay, None)]
    return _schedule_free(direction, learning_rate, warmup_steps, b1, weight_lr_power, state_dtype)


_COEFFICIENTS = {
    "standard": (3.4445, -4.7750, 2.0315),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def _matrix(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
    del path
    return len(leaf.shape) == 2


def muon(
    learning_rate: Hyper,
    ns_coeffs: Any = "standard",
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: float = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_decay_mask: Select = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: Hyper = 0.9,
    adam_b2: Hyper = 0.999,
    adam_eps_root: Hyper = 0.0,
    adam_weight_decay: Hyper = 0.0,
    adam_learning_rate: Hyper | None = None,
    muon_weight_dimension_numbers: None = None,
    consistent_rms: Hyper | None = None,
) -> Chain:
    """optax.contrib.muon: Nadam's momentum, orthogonalized, for the leaves of two axes; AdamW for the others.

    Args:
        learning_rate: η.
        ns_coeffs: (a, b, c) of each iteration, several of them for one each, or "standard" or "dion".
        ns_steps: the number of iterations, or with several coefficients the most that there may be.
        beta: β of the momentum.
        eps: added to the norm of a matrix; and ε of AdamW.
        weight_decay, weight_decay_mask: λ of the matrices, and which of them decay.
        mu_dtype: the dtype that first moments are held in; None: the parameters'.
        nesterov: whether momentum is Nadam's, also for the other leaves.
        adaptive, preconditioning, muon_weight_dimension_numbers: their defaults; others are refused.
        adam_b1, adam_b2, adam_eps_root, adam_weight_decay, adam_learning_rate: AdamW's.
        consistent_rms: None to scale by √max(1, out/in), or the root mean square to scale to.

    Raises:
        ValueError: for more coefficients than steps, and for arguments that are no rules here.

    >>> from gradtx.dialects import optax
    >>> import jax.numpy as jnp
    >>> tx, params = optax.muon(0.1), {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"].round(4)[0], updates["bias"].round(4))
    [-0.0348 -0.0348] [-0.1474 -0.1474]
    """
    if adaptive or preconditioning != "frobenius":
        raise ValueError("optax.muon: adaptive=True and preconditioning other than 'frobenius' are no rules here")
    if muon_weight_dimension_numbers is not None:
        raise ValueError(
            "optax.muon: muon_weight_dimension_numbers are the arguments matrices, stacked and output of gradtx.muon"
        )
    coefficients = _COEFFICIENTS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    if isinstance(coefficients[0], int | float):
        coefficients = (coefficients,) * ns_steps
    if len(coefficients) > ns_steps:
        raise ValueError(f"optax.muon: ns_coeffs for {len(coefficients)} iterations, and ns_steps={ns_steps}")
    coefficients = tuple((float(a), float(b), float(c)) for a, b, c in coefficients)
    average = [_first_moment(beta, mu_dtype, nesterov), *([] if nesterov else [rules.debias()])]
    direction = chain(
        *average, rules.orthogonalize(coefficients=coefficients, eps=eps), rules.scale_by_shape(consistent_rms)
    )
    decay = decoupled(weight_decay, _unmasked(weight_decay_mask))
    matrices = chain(direction, *decay, rules.scale_by_learning_rate(learning_rate))
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam_direction = chain(_adam(adam_b1, adam_b2, eps, adam_eps_root, mu_dtype, nesterov))
    others = chain(adam_direction, *decoupled(adam_weight_decay, None), rules.scale_by_learning_rate(rate))
    return chain(partition([(_matrix, matrices)], default=others))


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


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
) -> Chain:
    """optax.novograd: division by the average norm of each leaf, decay, heavy ball, learning rate.

    Args:
        learning_rate: η.
        b1: β₁ of the heavy ball.
        b2: β₂ of the squared norms.
        eps: ε outside the root.
        eps_root: ε inside the root.
        weight_decay: λ, through the momentum.

    >>> from gradtx.dialects import optax
    >>> print(optax.novograd(0.01))
    scale_by_gradient_norm(0.25, 1e-06, 0) → trace(0.9, False) → scale_by_learning_rate(0.01)
    """
    direction = chain(rules.scale_by_gradient_norm(b2, eps, eps_root), *decoupled(weight_decay, None))
    return chain(direction, rules.trace(b1), rules.scale_by_learning_rate(learning_rate))


def sm3(learning_rate: Hyper, momentum: Hyper = 0.9) -> Chain:
    """optax.sm3: division by a number for each row and column, momentum, learning rate.

    Args:
        learning_rate: η; in optax a number.
        momentum: β of the average.

    >>> from gradtx.dialects import optax
    >>> print(optax.sm3(0.1))
    scale_by_sm3(1e-08) → momentum(0.9) → scale_by_learning_rate(0.1)
    """
    return optimizers.sm3(learning_rate, momentum)


def madgrad(learning_rate: Hyper, momentum: Hyper = 0.9, weight_decay: Hyper = 0.0, eps: Hyper = 1e-6) -> Chain:
    """optax.contrib.madgrad: dual averaging with a cube root, whose learning rate is η + ε as its authors have it.

    Args:
        learning_rate: η.
        momentum: μ.
        weight_decay: λ, added to the gradient.
        eps: ε outside the root, and added to η.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.madgrad(0.01).rules][4:]
    ['precondition', 'scale', 'dual_averaging', 'scale']
    """
    rate = derived(lambda eta, eps: eta + eps, learning_rate, eps)
    return optimizers.madgrad(rate, momentum, weight_decay, eps)


def _coupled(weight_decay: Hyper | None, mask: Select) -> tuple[Rule, ...]:
    return () if weight_decay is None else decoupled(weight_decay, _unmasked(mask))


def dog(
    learning_rate: Hyper = 1.0,
    init_step: tuple[str, Hyper] = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    weight_decay: Hyper | None = None,
    mask: Select = None,
) -> Chain:
    """optax.contrib.dog: distance over gradients.

    Args:
        learning_rate: η.
        init_step: ("heuristic", r): the first distance in units of 1 + ‖w₀‖; ("distance", r): the distance itself.
        eps: ε inside the root.
        weight_decay: λ, added to the gradient; None for none.
        mask: which leaves decay; None: all.

    Raises:
        ValueError: for another ``init_step``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.dog().rules]
    ['scale_by_gradient_norm', 'scale_by_distance', 'scale_by_learning_rate']
    """
    kind, value = init_step
    if kind not in ("heuristic", "distance"):
        raise ValueError(
            f"optax.dog: init_step must be ('heuristic', r) or ('distance', r), found {init_step!r}; a first learning "
            "rate η is a distance of η times the norm of the first gradient"
        )
    norm = rules.scale_by_gradient_norm(None, 0.0, eps, over="tree")
    distance = rules.scale_by_distance(value, relative=kind == "heuristic")
    return chain(*_coupled(weight_decay, mask), norm, distance, rules.scale_by_learning_rate(learning_rate))


def dowg(
    learning_rate: Hyper = 1.0,
    init_estim_sq_dist: Hyper | None = None,
    eps: Hyper = 1e-4,
    weight_decay: Hyper | None = None,
    mask: Select = None,
) -> Chain:
    """optax.contrib.dowg: distance over gradients, each gradient times the distance of its step.

    Args:
        learning_rate: η.
        init_estim_sq_dist: the square of the first distance; None: ``eps``.
        eps: ε outside the root.
        weight_decay, mask: as in ``dog``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.dowg().rules]
    ['scale_by_distance', 'scale_by_gradient_norm', 'scale_by_distance', 'scale_by_learning_rate']
    """
    square = eps if init_estim_sq_dist is None else init_estim_sq_dist
    distance = rules.scale_by_distance(derived(lambda square: square**0.5, square), relative=False)
    norm = rules.scale_by_gradient_norm(None, eps, over="tree")
    step = rules.scale_by_learning_rate(learning_rate)
    return chain(*_coupled(weight_decay, mask), distance, norm, distance, step)


def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Hyper | None = None,
    eps: Hyper = 1e-8,
    estim_lr0: Hyper = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
) -> Chain:
    """optax.contrib.prodigy: Adam in units of an estimated distance, with its debiasing in the learning rate.

    Args:
        learning_rate: η; √(1−β₂ᵗ)/(1−β₁ᵗ) goes with it, in the estimate too.
        betas: β₁ and β₂.
        beta3: the decay of the estimate; None: √β₂.
        eps: ε outside the root, in units of the distance.
        estim_lr0: the first estimate.
        estim_lr_coef: the factor of the estimate.
        weight_decay: λ, decoupled.
        safeguard_warmup: whether the learning rate is left out of the estimate's denominator.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.prodigy().rules]
    ['in_units_of_distance', 'scale_by_learning_rate']
    """
    b1, b2 = betas

    def debiased(eta: Any, b1: Any, b2: Any, count: Any) -> Any:
        return jnp.asarray(eta, float) * (1 - b2 ** (count + 1.0)) ** 0.5 / (1 - b1 ** (count + 1.0))

    rate = derived(debiased, learning_rate, b1, b2, lambda count: count)
    beta3 = derived(lambda b2: b2**0.5, b2) if beta3 is None else beta3
    adam = chain(rules.momentum(b1), rules.rms(b2), rules.precondition(eps), *decoupled(weight_decay, None))
    units = rules.in_units_of_distance(adam, rate, estim_lr0, beta3, estim_lr_coef, weighted=not safeguard_warmup)
    return chain(units, rules.scale_by_learning_rate(rate))


def cocob(
    learning_rate: Hyper = 1.0,
    alpha: Hyper = 100.0,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Select = None,
) -> Chain:
    """optax.contrib.cocob: coin betting, on gradients times the learning rate.

    Args:
        learning_rate: η. A constant one shows only beside ``eps``; a schedule gives each gradient a weight.
        alpha: α, of which the first step is a part.
        eps: the least scale of gradients.
        weight_decay: λ, added to the gradient.
        mask: which leaves decay; None: all.

    >>> from gradtx.dialects import optax
    >>> print(optax.cocob())
    scale(1) → coin_betting(100, 1e-08)
    """
    decay = decoupled(weight_decay, _unmasked(mask))
    return chain(*decay, rules.scale(learning_rate), rules.coin_betting(alpha, eps))


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
