"""torch.optim's optimizers, with torch's argument names, defaults and order (torch 2.13).

What is torch's own: weight decay is coupled (added to the gradient before everything) except in AdamW, Adafactor and
Muon; the learning rate stands outside every momentum; epsilon stands outside the root of the debiased second moment,
in RAdam of that which is not debiased; AMSGrad takes the maximum before debiasing; the first step of a damped momentum
is not damped; averaged SGD reads its learning rate one step late; Adafactor's rate is at most 1/√t, and its divisor at
least the epsilon of the dtype.

Everywhere ``maximize=True`` turns the gradient around before the decay; ``foreach``, ``fused``, ``capturable`` and
``differentiable`` are taken and change nothing; ``decay_mask`` says which leaves decay, a selector as of ``where``
(torch: groups of parameters); a negative learning rate is an error; learning rates and betas may be arrays of one
element.

Where gradtx differs: torch treats a complex parameter as two real ones, so its second moments are of the real and the
imaginary part apart, while every rule of gradtx takes |g|². ``clip_grad_norm`` makes every leaf NaN for a gradient
that is not finite, where torch leaves zeros beside the NaN. A beta may be a schedule: averages are divided by the
weight that they have, while torch, whose ``OneCycleLR`` moves β₁, divides by 1 − βᵗ with the β of this step. A
momentum of 1 and more is refused. torch's Muon iterates in bfloat16, which moves it by some hundredths; its ASGD
holds the step size in float32. Pass ``clip_grad_value`` or ``clip_grad_norm`` in front: ``chain(clip_grad_norm(1.0),
adam())``.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack

import jax
import jax.core
import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.contract import Arrays, Named
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import falling_rate, is_zero, missing, refuse, scalar, steps
from gradtx.optimizers._parts import decoupled
from gradtx.rules.base import Hyper, Rule
from gradtx.rules.clipping import shortening

__all__ = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "clip_grad_norm",
    "clip_grad_value",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
]

_INSTEAD = {
    "lbfgs": "it takes several values of the loss in one step. Use optax.lbfgs",
    "sparseadam": "JAX has no sparse gradients: all rows count. Use gradtx.dialects.keras.adam, which has ε where this "
    "one has it",
    "optimizer": "an optimizer is a gradtx.chain of rules",
    "lr_scheduler": "give a function of the count of steps, such as those of optax.schedules, as the learning rate",
    "swa_utils": "end the chain with gradtx.average_iterates, and evaluate at gradtx.evaluation_point(state, params)",
    "clip_grad_norm_": "it is clip_grad_norm here, a rule to stand in front",
    "clip_grad_value_": "it is clip_grad_value here, a rule to stand in front",
}


def __getattr__(name: str) -> Any:
    missing("torch", name, __all__, _INSTEAD)


class Switches(TypedDict, total=False):
    """The arguments that say how torch computes: taken, and without effect."""

    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


def _front(name: str, maximize: bool, switches: Any) -> list[Rule]:
    """The rules before the decay: the gradient turned around, if it is to be climbed."""
    refuse(f"torch.{name}", {key: None for key in switches if key not in Switches.__annotations__})
    return [rules.scale(-1.0)] if maximize else []


def _rate(name: str, lr: Any) -> Any:
    """A learning rate that is not negative, where its value is known."""
    lr = scalar(lr)
    if not callable(lr) and not isinstance(lr, jax.core.Tracer) and lr < 0:
        raise ValueError(f"torch.{name}: lr must be 0 or more, found {lr}. To go uphill, pass maximize=True")
    return lr


def _step(name: str, lr: Hyper) -> Rule:
    return rules.scale_by_learning_rate(_rate(name, lr))


def sgd(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.0,
    dampening: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.SGD: [decay,] [heavy ball,] learning rate.

    Args:
        lr: the learning rate.
        momentum: μ; the number 0 for none.
        dampening: τ; the first step is not damped. Without momentum it does nothing, as in torch.
        weight_decay: λ of coupled decay.
        nesterov: Nesterov's form; needs a momentum and no dampening.
        maximize, decay_mask, **switches: as above, for all of these functions.

    Raises:
        ValueError: for ``nesterov`` without momentum or with dampening, and a negative learning rate.

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
    front = _front("sgd", maximize, switches)
    return chain(*front, *decoupled(weight_decay, decay_mask), *heavy_ball, _step("sgd", lr))


def adagrad(
    lr: Hyper = 1e-2,
    lr_decay: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    initial_accumulator_value: Hyper = 0.0,
    eps: Hyper = 1e-10,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Adagrad: [decay,] sum, division with epsilon outside the root, inverse time, learning rate.

    Args:
        lr: the learning rate.
        lr_decay: r; the learning rate is divided by 1 + r·t, t steps before this one.
        weight_decay: λ of coupled decay.
        initial_accumulator_value: what the sum starts at.
        eps: ε, outside the root.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> print(torch.adagrad())
    adagrad_sum(0) → precondition(1e-10, 0) → scale_by_inverse_time(0) → scale_by_learning_rate(0.01)
    """
    front = [*_front("adagrad", maximize, switches), *decoupled(weight_decay, decay_mask)]
    direction = chain(rules.adagrad_sum(initial_accumulator_value), rules.precondition(eps))
    return chain(*front, direction, rules.scale_by_inverse_time(lr_decay), _step("adagrad", lr))


def rmsprop(
    lr: Hyper = 1e-2,
    alpha: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum: Hyper = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.RMSprop: [decay,] RMS, division with epsilon outside the root, [heavy ball,] learning rate.

    Args:
        lr: the learning rate.
        alpha: the decay of the average; 0.99, where the others have 0.9.
        eps: ε, outside the root.
        weight_decay: λ of coupled decay.
        momentum: μ of a heavy ball; the number 0 for none.
        centered: whether to divide by the root of the variance.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> print(torch.rmsprop(momentum=0.9))
    rms(0.99) → precondition(1e-08, 0) → trace(0.9, False) → scale_by_learning_rate(0.01)
    """
    front = [*_front("rmsprop", maximize, switches), *decoupled(weight_decay, decay_mask)]
    second_moment = rules.centered_rms(alpha) if centered else rules.rms(alpha)
    heavy_ball = [] if is_zero(momentum) else [rules.trace(momentum)]
    return chain(*front, second_moment, rules.precondition(eps), *heavy_ball, _step("rmsprop", lr))


def adam(
    lr: Hyper = 1e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Adam: [coupled decay,] moments, [maximum,] debias, division, [decoupled decay,] learning rate.

    Args:
        lr: the learning rate.
        betas: the decays of the first and the second moment.
        eps: ε, outside the root of the debiased second moment.
        weight_decay: λ.
        amsgrad: whether to take the maximum of the second moment over time, before debiasing.
        decoupled_weight_decay: whether the decay is AdamW's.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adam(weight_decay=0.1, amsgrad=True).rules][:4]
    ['add_decayed_weights', 'momentum', 'rms', 'max_v']
    """
    b1, b2 = map(scalar, betas)
    maximum = [rules.max_v()] if amsgrad else []
    direction = chain(rules.momentum(b1), rules.rms(b2), *maximum, rules.debias(), rules.precondition(eps))
    decay, step = decoupled(weight_decay, decay_mask), _step("adam", lr)
    return _decayed(_front("adam", maximize, switches), direction, decay, decoupled_weight_decay, step)


def adamw(
    lr: Hyper = 1e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.AdamW: ``adam`` with decoupled decay, 1e-2 by default.

    Args:
        lr: the learning rate; it multiplies the decay too.
        betas, eps, amsgrad: as in ``adam``.
        weight_decay: λ.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adamw().rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    return adam(lr, betas, eps, weight_decay, amsgrad, True, maximize=maximize, decay_mask=decay_mask, **switches)


def nadam(
    lr: Hyper = 2e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum_decay: Hyper = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.NAdam: Nadam with a momentum schedule.

    Args:
        lr: the learning rate.
        betas, eps: as in ``adam``.
        weight_decay: λ, coupled unless ``decoupled_weight_decay``.
        momentum_decay: ψ of the schedule β₁(1 − ½·0.96^(ψt)). 0 is not "off": it halves the momentum.
        decoupled_weight_decay: whether the decay is AdamW's.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> print(torch.nadam())
    nesterov(0.9, 0.004) → rms(0.999) → debias() → precondition(1e-08, 0) → scale_by_learning_rate(0.002)
    """
    b1, b2 = map(scalar, betas)
    direction = chain(rules.nesterov(b1, momentum_decay), rules.rms(b2), rules.debias(), rules.precondition(eps))
    decay, step = decoupled(weight_decay, decay_mask), _step("nadam", lr)
    return _decayed(_front("nadam", maximize, switches), direction, decay, decoupled_weight_decay, step)


def radam(
    lr: Hyper = 1e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.RAdam: moments, division once v is to be relied on, and only then debias.

    Args:
        lr: the learning rate.
        betas: as in ``adam``.
        eps: "epsilon hat", added to the root before debiasing.
        weight_decay: λ, coupled unless ``decoupled_weight_decay``.
        decoupled_weight_decay: whether the decay is AdamW's.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.radam().rules]
    ['momentum', 'rms', 'rectified_precondition', 'debias', 'scale_by_learning_rate']
    """
    b1, b2 = map(scalar, betas)
    averages = chain(rules.momentum(b1), rules.rms(b2))
    direction = chain(averages, rules.rectified_precondition(b2, eps), rules.debias())
    decay, step = decoupled(weight_decay, decay_mask), _step("radam", lr)
    return _decayed(_front("radam", maximize, switches), direction, decay, decoupled_weight_decay, step)


def _decayed(front: list[Rule], direction: Chain, decay: tuple[Rule, ...], after: bool, step: Rule) -> Chain:
    """The decay before the direction, coupled, or after it."""
    return chain(*front, direction, *decay, step) if after else chain(*front, *decay, direction, step)


def adamax(
    lr: Hyper = 2e-3,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Adamax: [decay,] momentum over the infinity norm of the gradients, which has epsilon in it.

    Args:
        lr: the learning rate.
        betas: the decays of the first moment and of the infinity norm.
        eps: ε, added to each |g|.
        weight_decay: λ of coupled decay.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adamax().rules]
    ['momentum', 'infinity', 'debias', 'precondition', 'scale_by_learning_rate']
    """
    b1, b2 = map(scalar, betas)
    front = [*_front("adamax", maximize, switches), *decoupled(weight_decay, decay_mask)]
    averages = chain(rules.momentum(b1), rules.infinity(b2, eps, power=1), rules.debias())
    return chain(*front, averages, rules.precondition(0.0, power=1), _step("adamax", lr))


def adadelta(
    lr: Hyper = 1.0,
    rho: Hyper = 0.9,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Adadelta: [decay,] RMS, division, root of the mean square of updates, learning rate.

    Args:
        lr: the learning rate.
        rho: ρ of both averages.
        eps: ε inside both roots.
        weight_decay: λ of coupled decay.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> print(torch.adadelta())
    rms(0.9) → precondition(0, 1e-06) → scale_by_update_rms(0.9, 1e-06) → scale_by_learning_rate(1)
    """
    front = [*_front("adadelta", maximize, switches), *decoupled(weight_decay, decay_mask)]
    direction = chain(rules.rms(rho), rules.precondition(0.0, eps), rules.scale_by_update_rms(rho, eps))
    return chain(*front, direction, _step("adadelta", lr))


def adafactor(
    lr: Hyper = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, Hyper] = (None, 1e-3),
    d: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Adafactor: division by a factored second moment, clip, size of the weights, learning rate, [decay].

    Where the mean square of a leaf's gradients is below the epsilon of its dtype (gradients of 3e-4 in float32), torch
    takes that epsilon for it in the divisor and makes steps longer, up to the clip; ``gradtx.adafactor`` is as the
    paper has it. In leaves of more than two axes the last two are factored, in ``gradtx.adafactor`` the two largest.

    Args:
        lr: the learning rate, at most 1/√t in step t.
        beta2_decay: −p of the decay 1 − t^(−p), at most 0.
        eps: the floors of the mean squares, None for the epsilon of the dtype, and of the weights' root mean square.
        d: the clip of each leaf's root mean square.
        weight_decay: λ, decoupled.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.adafactor().rules]
    ['scale_by_factored_rms', 'clip_by_rms', 'scale_by_parameter_rms', 'scale_by_learning_rate']
    """
    rate = _rate("adafactor", lr)
    second_moment = rules.scale_by_factored_rms(-beta2_decay, least=1, axes="last", floor=eps[0])
    scaled = chain(second_moment, rules.clip_by_rms(d), rules.scale_by_parameter_rms(eps[1]))
    decay = [] if is_zero(weight_decay) else [rules.decay_weights(rate, weight_decay, where=decay_mask)]
    step = rules.scale_by_learning_rate(falling_rate(rate))
    return chain(*_front("adafactor", maximize, switches), scaled, step, *decay)


def rprop(
    lr: Hyper = 1e-2,
    etas: tuple[Hyper, Hyper] = (0.5, 1.2),
    step_sizes: tuple[Hyper, Hyper] = (1e-6, 50.0),
    *,
    maximize: bool = False,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.Rprop: a step size for each element, by the sign of the gradient.

    Args:
        lr: the step size at the start.
        etas: the factors where the gradient turns and where it does not.
        step_sizes: the least and the largest step.
        maximize, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> print(torch.rprop())
    resilient_step(0.01, 0.5, 1.2, 1e-06, 50) → scale(-1)
    """
    front = _front("rprop", maximize, switches)
    return chain(*front, rules.resilient_step(_rate("rprop", lr), *etas, *step_sizes), rules.scale(-1.0))


def asgd(
    lr: Hyper = 1e-2,
    lambd: Hyper = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: Hyper = 0.0,
    *,
    maximize: bool = False,
    decay_mask: Select = None,
    **switches: Unpack[Switches],
) -> Chain:
    """torch.optim.ASGD: [decay,] decay λ, learning rate η/(1 + ληt)^α, average of the iterates.

    ``evaluation_point(state, params)`` is what torch holds as ``ax``. A learning rate that changes is read one step
    late, as torch does. The state holds the step size: to change η give a schedule.

    Args:
        lr: η.
        lambd: λ, of the weights and of the step size.
        alpha: α of the step size.
        t0: the number of steps before the average begins.
        weight_decay: a further decay, before λ.
        maximize, decay_mask, **switches: as in ``sgd``.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.asgd().rules]
    ['add_decayed_weights', 'scale_by_learning_rate', 'average_iterates']
    """
    eta, lam = _rate("asgd", lr), scalar(lambd)

    def rate(count: jax.Array) -> Any:
        late: Any = eta(jnp.maximum(count - 1, 0)) if callable(eta) else eta
        shrinking: Any = lam(count) if callable(lam) else lam
        return late / (1 + shrinking * late * steps(count)) ** alpha

    front = [*_front("asgd", maximize, switches), *decoupled(weight_decay, decay_mask)]
    # torch's share of the first step is 1, of a negative t0 too
    average = rules.average_iterates(lambda count: jnp.where(count == 0, 1, 1 / jnp.maximum(1.0, steps(count) - t0)))
    return chain(*front, rules.add_decayed_weights(lam), rules.scale_by_learning_rate(rate), average)


def muon(
    lr: Hyper = 1e-3,
    weight_decay: Hyper = 0.1,
    momentum: Hyper = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    *,
    decay_mask: Select = None,
) -> Chain:
    """torch.optim.Muon: momentum, [a share of the gradient,] orthogonalized and scaled by the shape; decay.

    For matrices alone, in torch's layout of outputs by inputs; give the others another optimizer by ``partition``.
    torch iterates in bfloat16, which moves each singular value by some hundredths; this does not.

    Args:
        lr: the learning rate; it multiplies the decay too.
        weight_decay: λ, decoupled.
        momentum: β of the average.
        nesterov: whether to mix the gradient in once more.
        ns_coefficients: (a, b, c) of each iteration.
        eps: the least norm of a matrix.
        ns_steps: the number of iterations.
        adjust_lr_fn: "original" or None for √max(1, out/in), "match_rms_adamw" for a root mean square of 0.2.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    Raises:
        ValueError: for another ``adjust_lr_fn``; at ``init`` for a leaf of fewer than two axes.

    >>> from gradtx.dialects import torch
    >>> [rule.label for rule in torch.muon().rules][:4]
    ['momentum', 'quasi_hyperbolic', 'orthogonalize', 'scale_by_shape']
    """
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ValueError(f"torch.muon: adjust_lr_fn must be 'original' or 'match_rms_adamw', found {adjust_lr_fn!r}")
    size = 0.2 if adjust_lr_fn == "match_rms_adamw" else None
    average = [rules.momentum(momentum), *([rules.quasi_hyperbolic(momentum)] if nesterov else [])]
    a, b, c = ns_coefficients
    iterations = ((float(a), float(b), float(c)),) * ns_steps
    orthogonal = rules.orthogonalize(coefficients=iterations, output=0, eps=eps, form="max")
    direction = chain(*average, orthogonal, rules.scale_by_shape(size, output=0))
    return chain(direction, *decoupled(weight_decay, decay_mask), _step("muon", lr))


def clip_grad_value(clip_value: Hyper) -> Rule:
    """``torch.nn.utils.clip_grad_value_``: each element to [−clip_value, clip_value]. To stand in front.

    >>> from gradtx.dialects import torch
    >>> torch.clip_grad_value(1.0)
    clip_by_value(limit=1.0)
    """
    return rules.clip_by_value(clip_value)


class clip_grad_norm(rules.clip_by_global_norm):
    r"""``torch.nn.utils.clip_grad_norm_``: u ← u·min(1, limit/(‖all u‖ + 1e-6)). To stand in front.

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
        return shortening(measured + 1e-6, c.limit)
