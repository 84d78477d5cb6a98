"""torch.optim's optimizers, with torch's argument names, defaults and order (torch 2.13).

What is torch's own: weight decay is coupled (added to the gradient before everything) except in AdamW; the learning
rate stands outside every momentum; epsilon stands outside the root of the debiased second moment; AMSGrad takes the
maximum before debiasing; the first step of a damped momentum is not damped.

Where gradtx differs: torch treats a complex parameter as two real ones, so its second moments are of the real and the
imaginary part apart, while every rule of gradtx takes |g|². ``clip_grad_norm`` makes every leaf NaN for a gradient
that is not finite, where torch leaves zeros beside the NaN. Pass ``clip_grad_value`` or ``clip_grad_norm`` in front:
``chain(clip_grad_norm(1.0), adam())``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._maths import Arrays, Named
from gradtx._rule import Hyper, Rule
from gradtx.dialects._zero import is_zero

__all__ = ["adagrad", "adam", "adamw", "clip_grad_norm", "clip_grad_value", "nadam", "rmsprop", "sgd"]


def _decay(weight_decay: Hyper) -> list[Rule]:
    """Nothing where it is the number 0, so that the parameters are not needed."""
    return [] if is_zero(weight_decay) else [rules.add_decayed_weights(weight_decay)]


def sgd(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.0,
    dampening: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    nesterov: bool = False,
) -> Chain:
    """torch.optim.SGD: [decay,] [heavy ball,] learning rate.

    Args:
        lr: the learning rate.
        momentum: μ; the number 0 for none.
        dampening: τ; the first step is not damped. Without momentum it does nothing, as in torch.
        weight_decay: λ of coupled decay.
        nesterov: Nesterov's form; needs a momentum and no dampening.

    Raises:
        ValueError: for ``nesterov`` without momentum or with dampening.

    >>> from gradtx.dialects import torch
    >>> print(torch.sgd(0.1, momentum=0.9, weight_decay=1e-4))
    add_decayed_weights(0.0001) → trace(0.9, False) → scale_by_learning_rate(0.1)
    """
    still, undamped = is_zero(momentum), is_zero(dampening)
    if nesterov and (still or not undamped):
        raise ValueError("torch.sgd: nesterov=True needs a momentum, for example momentum=0.9, and dampening=0")
    if still:
        heavy_ball = []
    else:
        heavy_ball = [rules.trace(momentum, nesterov) if undamped else rules.damped_trace(momentum, dampening)]
    return chain(*_decay(weight_decay), *heavy_ball, rules.scale_by_learning_rate(lr))


def adagrad(
    lr: Hyper = 1e-2,
    lr_decay: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    initial_accumulator_value: Hyper = 0.0,
    eps: Hyper = 1e-10,
) -> Chain:
    """torch.optim.Adagrad: [decay,] sum, division with epsilon outside the root, inverse time, learning rate.

    Args:
        lr: the learning rate.
        lr_decay: r; the learning rate is divided by 1 + r·t, t steps before this one.
        weight_decay: λ of coupled decay.
        initial_accumulator_value: what the sum starts at.
        eps: ε, outside the root.

    >>> from gradtx.dialects import torch
    >>> print(torch.adagrad())
    adagrad_sum(0) → precondition(1e-10, 0) → scale_by_inverse_time(0) → scale_by_learning_rate(0.01)
    """
    direction = chain(rules.adagrad_sum(initial_accumulator_value), rules.precondition(eps))
    rate = chain(rules.scale_by_inverse_time(lr_decay), rules.scale_by_learning_rate(lr))
    return chain(*_decay(weight_decay), direction, rate)


def rmsprop(
    lr: Hyper = 1e-2,
    alpha: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum: Hyper = 0.0,
    centered: bool = False,
) -> Chain:
    """torch.optim.RMSprop: [decay,] RMS, division with epsilon outside the root, [heavy ball,] learning rate.

    Args:
        lr: the learning rate.
        alpha: the decay of the average; 0.99, where the others have 0.9.
        eps: ε, outside the root.
        weight_decay: λ of coupled decay.
        momentum: μ of a heavy ball; the number 0 for none.
        centered: whether to divide by the root of the variance.

    >>> from gradtx.dialects import torch
    >>> print(torch.rmsprop(momentum=0.9))
    rms(0.99) → precondition(1e-08, 0) → trace(0.9, False) → scale_by_learning_rate(0.01)
    """
    second_moment = rules.centered_rms(alpha) if centered else rules.rms(alpha)
    heavy_ball = [] if is_zero(momentum) else [rules.trace(momentum)]
    direction = chain(second_moment, rules.precondition(eps))
    return chain(*_decay(weight_decay), direction, *heavy_ball, rules.scale_by_learning_rate(lr))


def adam(
    lr: Hyper = 1e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Chain:
    """torch.optim.Adam: [coupled decay,] moments, [maximum,] debias, division, [decoupled decay,] learning rate.

    Args:
        lr: the learning rate.
        betas: the decays of the first and the second moment.
        eps: ε, outside the root of the debiased second moment.
        weight_decay: λ.
        amsgrad: whether to take the maximum of the second moment over time, before debiasing.
        decoupled_weight_decay: whether the decay is AdamW's.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adam(weight_decay=0.1, amsgrad=True).rules][:4]
    ['add_decayed_weights', 'momentum', 'rms', 'max_v']
    """
    b1, b2 = betas
    maximum = [rules.max_v()] if amsgrad else []
    direction = chain(rules.momentum(b1), rules.rms(b2), *maximum, rules.debias(), rules.precondition(eps))
    return _decayed(direction, weight_decay, decoupled_weight_decay, lr)


def adamw(
    lr: Hyper = 1e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-2,
    amsgrad: bool = False,
) -> Chain:
    """torch.optim.AdamW: ``adam`` with decoupled decay, 1e-2 by default.

    Args:
        lr: the learning rate; it multiplies the decay too.
        betas, eps, amsgrad: as in ``adam``.
        weight_decay: λ.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adamw().rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    return adam(lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True)


def nadam(
    lr: Hyper = 2e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum_decay: Hyper = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Chain:
    """torch.optim.NAdam: Nadam with a momentum schedule.

    Args:
        lr: the learning rate.
        betas, eps: as in ``adam``.
        weight_decay: λ, coupled unless ``decoupled_weight_decay``.
        momentum_decay: ψ of the schedule β₁(1 − ½·0.96^(ψt)). 0 is not "off": it halves the momentum.
        decoupled_weight_decay: whether the decay is AdamW's.

    >>> from gradtx.dialects import torch
    >>> print(torch.nadam())
    nesterov(0.9, 0.004) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.002)
    """
    b1, b2 = betas
    direction = chain(rules.nesterov(b1, momentum_decay), rules.rms(b2), rules.debias(), rules.precondition(eps))
    return _decayed(direction, weight_decay, decoupled_weight_decay, lr)


def _decayed(direction: Chain, weight_decay: Hyper, decoupled: bool, lr: Hyper) -> Chain:
    decay = _decay(weight_decay)
    parts = [direction, *decay] if decoupled else [*decay, direction]
    return chain(*parts, rules.scale_by_learning_rate(lr))


def clip_grad_value(clip_value: Hyper) -> Rule:
    """torch.nn.utils.clip_grad_value_: each element to [−clip_value, clip_value]. To stand in front.

    >>> from gradtx.dialects import torch
    >>> torch.clip_grad_value(1.0)
    clip_by_value(limit=1.0)
    """
    return rules.clip_by_value(clip_value)


class clip_grad_norm(rules.clip_by_global_norm):
    r"""torch.nn.utils.clip_grad_norm_: u ← u·min(1, limit/(‖all u‖ + 1e-6)). To stand in front.

    The 1e-6 makes it shrink gradients that are at the limit already, and shrink again what it has shrunk.

    Args:
        limit: torch's ``max_norm``, ≥ 0.

    >>> from gradtx.dialects import torch
    >>> import jax.numpy as jnp
    >>> tx, g = torch.clip_grad_norm(1.0), jnp.array([3.0, 4.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates < jnp.array([0.6, 0.8]), updates.round(5))
    [ True  True] [0.6 0.8]
    """

    equation = r"u \leftarrow u \min(1, c / (\lVert (u_1, u_2, \dots)\rVert + 10^{-6}))"

    def settle(self, c: Named, measured: jax.Array) -> Arrays:
        factor = jnp.minimum(1, c.limit / (measured + 1e-6))
        return {"factor": jnp.where(jnp.isfinite(measured), factor, jnp.nan)}
