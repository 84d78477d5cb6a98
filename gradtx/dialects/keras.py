"""Keras's optimizers, with Keras's argument names, defaults and order (Keras 3.15).

What is Keras's own: the order is clip, decay, step; weight decay is decoupled in every optimizer; the learning rate
stands inside the momentum; Adam has its epsilon on the second moment before debiasing ("epsilon hat"), Adagrad and
RMSprop inside the root, Adamax outside the maximum, and Nadam (whatever its docstring says) outside the root of the
debiased one; Nadam's schedule decays with 0.96ᵗ; Lamb and Adafactor measure weights that have decayed already;
schedule-free AdamW averages all iterates alike.

Everywhere, beside the arguments that each function names:

- ``decay_mask``: which leaves decay, a selector as of ``where`` (Keras: ``exclude_from_weight_decay``);
- ``use_ema``, ``ema_momentum``: the average of the parameters, at ``evaluation_point(state, params)``, where Keras
  writes it into the model at the end;
- ``ema_overwrite_frequency``: every so many steps the parameters become that average;
- ``gradient_accumulation_steps``: a step with the mean of so many gradients. As in Keras, a schedule of the learning
  rate and the average of the parameters go by gradients, all else by steps. (``accumulate`` around the whole counts
  steps alone, and is in one pass with them.)
- ``loss_scale_factor``: gradients are divided by it;
- ``name`` is taken and changes nothing.

Refused is the ``use_ema`` of schedule-free AdamW, which evaluates an average already.

Where gradtx differs: a clip threshold that is not positive is an error, where Keras silently clips nothing.
``clipnorm`` makes a whole leaf NaN for a gradient that is not finite.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.contract import Named, Tick
from gradtx._core.limits import integer
from gradtx._core.numerics import safe_divide
from gradtx._core.selectors import Not, Select, selector
from gradtx._engine.transformation import Transformation
from gradtx._wrappers.accumulate import accumulate
from gradtx._wrappers.partition import partition
from gradtx.dialects._arguments import falling_rate, is_zero, lion_mixture, missing, refuse, steps
from gradtx.optimizers._parts import derived
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = [
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "ftrl",
    "lamb",
    "lion",
    "muon",
    "nadam",
    "rmsprop",
    "schedule_free_adamw",
    "sgd",
]

_INSTEAD = {
    "lossscaleoptimizer": "use gradtx.loss_scale",
    "multioptimizer": "use gradtx.partition",
    "optimizer": "an optimizer is a gradtx.chain of rules",
    "schedules": "give a function of the count of steps, such as those of optax.schedules, as the learning rate",
}


def __getattr__(name: str) -> Any:
    missing("keras", name, __all__, _INSTEAD)


class Options(TypedDict, total=False):
    """Arguments that all of Keras's optimizers have; see the module."""

    decay_mask: Select
    use_ema: bool
    ema_momentum: Hyper
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


def _framed(
    name: str, clip: tuple[Hyper | None, Hyper | None, Hyper | None], options: Options, *parts: Transformation[Any]
) -> Chain:
    """The optimizer's own rules between what Keras has before and after all of them.

    Raises:
        TypeError: for an option that Keras does not have.
        ValueError: for one that is no rule.
    """
    refuse(f"keras.{name}", {key: None for key in options if key not in Options.__annotations__})
    scale, factor = [], options.get("loss_scale_factor")
    if factor is not None:
        scale = [rules.scale(1 / factor)]
    step, gradients = chain(*scale, *_clip(*clip), *parts), _gradients(options)
    if gradients > 1:
        step = chain(accumulate(step, gradients))
    if not options.get("use_ema", False):
        return step
    rate = derived(  # 1 up to the first step: the average begins with the parameters after it
        lambda beta, starts: jnp.where(starts, 1.0, 1.0 - beta),
        options.get("ema_momentum", 0.99),
        lambda count: count < gradients,
    )
    every = options.get("ema_overwrite_frequency")
    average = rules.average_iterates(rate) if every is None else replaced_by_average(rate, every=every, unit=gradients)
    return chain(step, average)


def _gradients(options: Options) -> int:
    """The number of gradients that a step takes the mean of."""
    number = options.get("gradient_accumulation_steps")
    return 1 if number is None else integer("keras", "gradient_accumulation_steps", number, low=2)


def _rate(learning_rate: Hyper, options: Options) -> Hyper:
    """The learning rate as a schedule of steps, where Keras has one of gradients: that of the last of a step."""
    number = _gradients(options)
    if not callable(learning_rate) or number == 1:
        return learning_rate
    return lambda count: learning_rate(number * count + number - 1)


def _step(learning_rate: Hyper, options: Options) -> Rule:
    return rules.scale_by_learning_rate(_rate(learning_rate, options))


class replaced_by_average(rules.average_iterates):
    r"""``average_iterates``, and every so many steps the parameters become the average.

    Args:
        rate: as in ``average_iterates``.
        every: k ≥ 1 steps.
        unit: how many updates are one step; the parameters are replaced after each update of a k-th step.

    State: that of ``average_iterates``; the step is told by the count of the chain, as by Keras's ``iterations``.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.keras import replaced_by_average
    >>> tx, p = gradtx.chain(gradtx.scale(-1.0), replaced_by_average(0.5, every=2)), jnp.array([0.0])
    >>> state = tx.init(p)
    >>> for _ in range(2):
    ...     p, state = gradtx.step(tx, p, jnp.array([-4.0]), state)
    ...     print(p)  # 4, whose average with the start is 2; 8, with 2
    [4.]
    [5.]
    """

    equation = r"\text{every } k \text{ steps } u \leftarrow u + e, \; e \leftarrow 0"

    every: int = dataclasses.field(default=1, kw_only=True)
    unit: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        integer(self.label, "every", self.every, low=1)

    def tick(self, h, scalars, weights, count):
        c, after, weights = super().tick(h, scalars, weights, count)
        back = jnp.where(count // self.unit % self.every == self.every - 1, 1, jnp.zeros_like(h.pull))
        return Tick(c | {"back": back, "remains": 1 - back}, after, weights)

    def apply(self, signal, slots, param, c):
        signal, after = super().apply(signal, slots, param, c)
        offset = after["average_offset"]
        return signal._replace(direction=signal.direction + c.back * offset), {"average_offset": c.remains * offset}


def _clip(clipnorm: Hyper | None, clipvalue: Hyper | None, global_clipnorm: Hyper | None) -> list[Rule]:
    """At most one clip: clipnorm for the norm of each leaf, clipvalue for each element, global_clipnorm for all."""
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    given = {name: limit for name, limit in clips.items() if limit is not None}
    if len(given) > 1:
        raise ValueError(f"keras: at most one of clipnorm, clipvalue and global_clipnorm, found {sorted(given)}")
    for name, limit in given.items():
        if isinstance(limit, int | float) and limit <= 0:
            raise ValueError(f"keras: {name} must be positive, found {limit:g}. Keras would clip nothing: pass None.")
    makers = {
        "clipnorm": rules.clip_by_norm,
        "clipvalue": rules.clip_by_value,
        "global_clipnorm": rules.clip_by_global_norm,
    }
    return [makers[name](limit) for name, limit in given.items()]


def _decay(weight_decay: Hyper | None, options: Options) -> list[Rule]:
    where = options.get("decay_mask")
    return [] if weight_decay is None else [rules.add_decayed_weights(weight_decay, where=where)]


def _of_decayed(options: Options, decayed: Callable[[Select], Chain], others: Callable[[Select], Chain]) -> Chain:
    """Chains for the leaves that decay, and for the others, if there are any."""
    mask = options.get("decay_mask")
    if mask is None:
        return decayed(None)
    chosen = selector(mask)
    return chain(decayed(chosen), others(Not(chosen)))


def _velocity(
    learning_rate: Hyper, momentum: Hyper, nesterov: bool, weight_decay: Hyper | None, options: Options
) -> list[Rule]:
    """Learning rate, momentum, decay: the velocity form, in which the decay must pass the momentum by."""
    learning_rate = _rate(learning_rate, options)
    if is_zero(momentum):
        return [*_decay(weight_decay, options), rules.scale_by_learning_rate(learning_rate)]
    where = options.get("decay_mask")
    decay = [] if weight_decay is None else [rules.decay_weights(learning_rate, weight_decay, where=where)]
    return [rules.scale_by_learning_rate(learning_rate), rules.trace(momentum, nesterov), *decay]


def sgd(
    learning_rate: Hyper = 0.01,
    momentum: Hyper = 0.0,
    nesterov: bool = False,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.SGD: [clip,] learning rate, [heavy ball,] [decay].

    Args:
        learning_rate: η, inside the momentum.
        momentum: μ; the number 0 for none.
        nesterov: Nesterov's form; without momentum it does nothing, as in Keras.
        weight_decay: λ of decoupled decay, or None.
        clipnorm, clipvalue, global_clipnorm: at most one clip: by each leaf's norm, by value, by the norm of all.
        **options: what all of these functions take, see above.

    Raises:
        ValueError: for more than one clip, or one that is not positive.

    >>> from gradtx.dialects import keras
    >>> print(keras.sgd(momentum=0.9, clipnorm=1.0))
    clip_by_norm(1) → scale_by_learning_rate(0.01) → trace(0.9, False)
    """
    clip = (clipnorm, clipvalue, global_clipnorm)
    return _framed("sgd", clip, options, *_velocity(learning_rate, momentum, nesterov, weight_decay, options))


def adagrad(
    learning_rate: Hyper = 0.001,
    initial_accumulator_value: Hyper = 0.1,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Adagrad: [clip,] sum, division with epsilon inside the root, [decay,] learning rate.

    Args:
        learning_rate: η.
        initial_accumulator_value: what the sum starts at.
        epsilon: ε, inside the root.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.adagrad())
    adagrad_sum(0.1) → precondition(0, 1e-07) → scale_by_learning_rate(0.001)
    """
    clip = (clipnorm, clipvalue, global_clipnorm)
    direction = chain(rules.adagrad_sum(initial_accumulator_value), rules.precondition(0.0, epsilon))
    step = _step(learning_rate, options)
    return _framed("adagrad", clip, options, direction, *_decay(weight_decay, options), step)


def rmsprop(
    learning_rate: Hyper = 0.001,
    rho: Hyper = 0.9,
    momentum: Hyper = 0.0,
    epsilon: Hyper = 1e-7,
    centered: bool = False,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.RMSprop: [clip,] RMS, division with epsilon in the root, learning rate, [heavy ball,] [decay].

    Args:
        learning_rate: η, inside the momentum.
        rho: the decay of the average.
        momentum: μ of a heavy ball; the number 0 for none.
        epsilon: ε, inside the root.
        centered: whether to divide by the root of the variance.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.rmsprop(momentum=0.9))
    rms(0.9) → precondition(0, 1e-07) → scale_by_learning_rate(0.001) → trace(0.9, False)
    """
    second_moment = rules.centered_rms(rho) if centered else rules.rms(rho)
    direction = chain(second_moment, rules.precondition(0.0, epsilon))
    velocity = _velocity(learning_rate, momentum, False, weight_decay, options)
    return _framed("rmsprop", (clipnorm, clipvalue, global_clipnorm), options, direction, *velocity)


def adam(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    amsgrad: bool = False,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Adam: [clip,] moments, [maximum,] division, and only then debias; [decay,] learning rate.

    Args:
        learning_rate: η.
        beta_1: the decay of the first moment.
        beta_2: the decay of the second moment.
        epsilon: "epsilon hat", added to the root before debiasing.
        amsgrad: whether to take the maximum of the second moment over time.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``. With decay it is AdamW.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.adam())
    momentum(0.9) → rms(0.999) → precondition(1e-07, 0) → debias() → scale_by_learning_rate(0.001)
    """
    maximum = [rules.max_v()] if amsgrad else []
    averages = chain(rules.momentum(beta_1), rules.rms(beta_2), *maximum)
    direction = chain(averages, rules.precondition(epsilon), rules.debias(), *_decay(weight_decay, options))
    step = _step(learning_rate, options)
    return _framed("adam", (clipnorm, clipvalue, global_clipnorm), options, direction, step)


def adamw(
    learning_rate: Hyper = 0.001,
    weight_decay: Hyper = 0.004,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    amsgrad: bool = False,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.AdamW: ``adam`` with decoupled decay, 0.004 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        weight_decay: λ.
        beta_1, beta_2, epsilon, amsgrad, clipnorm, clipvalue, global_clipnorm, **options: as in ``adam``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.adamw().rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    if weight_decay is None:
        raise ValueError("keras.adamw: weight_decay must be a number, as in Keras; without decay take keras.adam")
    clip = (clipnorm, clipvalue, global_clipnorm)
    return adam(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, *clip, **options)


def nadam(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Nadam: Nadam with a momentum schedule that decays 250 times as fast as torch's.

    Args:
        learning_rate: η.
        beta_1: the decay of the first moment.
        beta_2: the decay of the second moment.
        epsilon: ε, outside the root of the debiased second moment.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.nadam())
    nesterov(0.9, 1) → rms(0.999) → debias() → precondition(1e-07, 0) → scale_by_learning_rate(0.001)
    """
    averages = chain(rules.nesterov(beta_1, 1.0), rules.rms(beta_2), rules.debias())
    direction = chain(averages, rules.precondition(epsilon), *_decay(weight_decay, options))
    step = _step(learning_rate, options)
    return _framed("nadam", (clipnorm, clipvalue, global_clipnorm), options, direction, step)


def adamax(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Adamax: [clip,] momentum over the infinity norm of the gradients plus epsilon; [decay].

    Args:
        learning_rate: η.
        beta_1: the decay of the first moment.
        beta_2: the decay of the infinity norm.
        epsilon: ε, added to the norm.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.adamax().rules]
    ['momentum', 'infinity', 'debias', 'precondition', 'scale_by_learning_rate']
    """
    averages = chain(rules.momentum(beta_1), rules.infinity(beta_2, 0.0, power=1), rules.debias())
    direction = chain(averages, rules.precondition(epsilon, power=1), *_decay(weight_decay, options))
    step = _step(learning_rate, options)
    return _framed("adamax", (clipnorm, clipvalue, global_clipnorm), options, direction, step)


def adadelta(
    learning_rate: Hyper = 0.001,
    rho: Hyper = 0.95,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Adadelta: [clip,] RMS, division, root of the mean square of updates, [decay,] learning rate.

    Args:
        learning_rate: η; 1 is the paper's.
        rho: ρ of both averages.
        epsilon: ε inside both roots.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.adadelta(1.0))
    rms(0.95) → precondition(0, 1e-07) → scale_by_update_rms(0.95, 1e-07) → scale_by_learning_rate(1)
    """
    direction = chain(rules.rms(rho), rules.precondition(0.0, epsilon), rules.scale_by_update_rms(rho, epsilon))
    rest = [*_decay(weight_decay, options), _step(learning_rate, options)]
    return _framed("adadelta", (clipnorm, clipvalue, global_clipnorm), options, direction, *rest)


def adafactor(
    learning_rate: Hyper = 0.001,
    beta_2_decay: float = -0.8,
    epsilon_1: float = 1e-30,
    epsilon_2: Hyper = 1e-3,
    clip_threshold: Hyper = 1.0,
    relative_step: bool = True,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Adafactor: [clip,] division by a factored second moment, clip, size of the weights, rate.

    In leaves of more than two axes the last two are factored, in ``gradtx.adafactor`` the two largest. Keras decays the
    weights before it takes their size, which is 1 − ηλ times as large then; with decay, change the learning rate by a
    schedule and not in the state, which holds both.

    Args:
        learning_rate: η, at most 1/√t in step t.
        beta_2_decay: −p of the decay 1 − t^(−p), at most 0.
        epsilon_1: added to the squares.
        epsilon_2: the least root mean square of the weights.
        clip_threshold: of each leaf's root mean square.
        relative_step: without effect, as in Keras.
        weight_decay: λ of decoupled decay, times η itself, or None.
        clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.adafactor().rules]
    ['scale_by_factored_rms', 'clip_by_rms', 'scale_by_parameter_rms', 'scale_by_learning_rate']
    """
    del relative_step
    second_moment = rules.scale_by_factored_rms(-beta_2_decay, epsilon_1, 1, axes="last")
    direction = chain(second_moment, rules.clip_by_rms(clip_threshold))
    learning_rate = _rate(learning_rate, options)

    def size(where: Select) -> Chain:
        return chain(rules.scale_by_parameter_rms(epsilon_2, where=where))

    if weight_decay is None:
        sizes, decay = size(None), []
    else:
        kept = derived(lambda eta, lam: 1 - eta * lam, learning_rate, weight_decay)
        floor = derived(lambda eps, kept: eps / kept, epsilon_2, kept)

        def of_decayed(where: Select) -> Chain:
            return chain(rules.scale_by_parameter_rms(floor, where=where), rules.scale(kept, where=where))

        sizes = _of_decayed(options, of_decayed, size)
        decay = [rules.decay_weights(learning_rate, weight_decay, where=options.get("decay_mask"))]
    rest = [sizes, rules.scale_by_learning_rate(falling_rate(learning_rate)), *decay]
    return _framed("adafactor", (clipnorm, clipvalue, global_clipnorm), options, direction, *rest)


def lion(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.99,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Lion: [clip,] the sign of a mixture of momentum and gradient, [decay,] learning rate.

    Args:
        learning_rate: η.
        beta_1: β₁ of the mixture, greater than 0 and at most 1.
        beta_2: β₂ of the momentum; the number 0 for the last gradient in its place.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``, and for a β that is not in its range.

    >>> from gradtx.dialects import keras
    >>> print(keras.lion())
    momentum(0.99) → quasi_hyperbolic(0.909091) → sign() → scale_by_learning_rate(0.001)
    """
    if isinstance(beta_1, int | float) and not 0 < beta_1 <= 1:
        raise ValueError(f"keras.lion: beta_1 must be greater than 0 and at most 1, found {beta_1:g}")
    direction = chain(lion_mixture(beta_1, beta_2), rules.sign(), *_decay(weight_decay, options))
    step = _step(learning_rate, options)
    return _framed("lion", (clipnorm, clipvalue, global_clipnorm), options, direction, step)


def ftrl(
    learning_rate: Hyper = 0.001,
    learning_rate_power: float = -0.5,
    initial_accumulator_value: Hyper = 0.1,
    l1_regularization_strength: Hyper = 0.0,
    l2_regularization_strength: Hyper = 0.0,
    l2_shrinkage_regularization_strength: Hyper = 0.0,
    beta: Hyper = 0.0,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Ftrl: [clip,] follow the regularized leader.

    Keras's squares start at 0.1 and its z at 0, which do not fit: the first step also multiplies the weights by
    1 − √(0.1/(0.1 + g²)), and without any gradient they become 0. ``ftrl_proximal`` by itself starts both at 0.

    Args:
        learning_rate: η.
        learning_rate_power: −p of sᵖ, which is the root.
        initial_accumulator_value: what the squares start at.
        l1_regularization_strength: l₁.
        l2_regularization_strength: l₂.
        l2_shrinkage_regularization_strength: l₃; 2l₃ times the weights is added to the gradient, but not to its square.
        beta: β, added to the root of the squares.
        weight_decay: λ or None. It moves the weights before the step, which moves them from where they were all the
            same: what is left of it is that z sees weights of 1 − ηλ.
        clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.ftrl())
    ftrl_proximal(0.001, 0, 0, 0, 0.1)
    """
    strengths = l1_regularization_strength, l2_regularization_strength
    shrinkage = None if is_zero(l2_shrinkage_regularization_strength) else l2_shrinkage_regularization_strength
    arguments: Any = (_rate(learning_rate, options), *strengths, beta, initial_accumulator_value, shrinkage)

    def leader(where: Select) -> Chain:
        return chain(rules.ftrl_proximal(*arguments, power=-learning_rate_power, where=where))

    leaders = leader(None)
    if weight_decay is not None:
        decay: Hyper = weight_decay

        def of_decayed(where: Select) -> Chain:
            return chain(decayed_ftrl(*arguments, decay=decay, power=-learning_rate_power, where=where))

        leaders = _of_decayed(options, of_decayed, leader)
    return _framed("ftrl", (clipnorm, clipvalue, global_clipnorm), options, leaders)


class decayed_ftrl(rules.ftrl_proximal):
    r"""``ftrl_proximal`` of weights that have decayed before: (1−ηλ)p in the place of p.

    Args:
        learning_rate, l1, l2, beta, initial, shrinkage, power: as in ``ftrl_proximal``.
        decay: λ.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.keras import decayed_ftrl
    >>> tx, p = decayed_ftrl(0.5, decay=0.4), jnp.array([1.0])
    >>> updates, state = tx.update(jnp.array([3.0]), tx.init(p), p)
    >>> print(p + updates)  # z = 3 − (3/0.5)·0.8
    [0.3]
    """

    decay: Hyper = hyper(default=0.0)

    def apply(self, signal, slots, param, c):
        lost = c.learning_rate * c.decay * param
        signal, after = super().apply(signal, slots, param - lost, c)
        return signal._replace(direction=signal.direction - lost), after


def lamb(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Lamb: [clip,] Adam's direction, as long as the leaf's decayed weights, [decay,] learning rate.

    Keras decays the weights before it takes their norm, which is 1 − ηλ times as long then: the coefficient of the
    trust ratio. With decay, change the learning rate by a schedule and not in the state, which holds both.

    Args:
        learning_rate: η.
        beta_1, beta_2: as in ``adam``.
        epsilon: ε, outside the root of the debiased second moment.
        weight_decay, clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.lamb().rules][-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    learning_rate = _rate(learning_rate, options)

    def ratio(where: Select, kept: Hyper = 1.0) -> Chain:
        return chain(rules.scale_by_trust_ratio(kept, where=where))

    ratios = ratio(None)
    if weight_decay is not None:
        kept = derived(lambda eta, lam: 1 - eta * lam, learning_rate, weight_decay)
        ratios = _of_decayed(options, lambda where: ratio(where, kept), ratio)
    averages = chain(rules.momentum(beta_1), rules.rms(beta_2), rules.debias(), rules.precondition(epsilon))
    rest = [ratios, *_decay(weight_decay, options), rules.scale_by_learning_rate(learning_rate)]
    return _framed("lamb", (clipnorm, clipvalue, global_clipnorm), options, averages, *rest)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-8,
    warmup_steps: int = 0,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.ScheduleFreeAdamW: [clip,] RMS, debias, division, rate, plain average of the iterates.

    ``evaluation_point(state, params)`` is the average, where Keras evaluates the parameters themselves. All iterates
    count alike, also those of the warm-up.

    Args:
        learning_rate: η.
        beta_1: where between iterates (0) and average (1) the parameters are.
        beta_2: the decay of the second moment.
        epsilon: ε, outside the root of the debiased second moment.
        warmup_steps: the length of a linear warm-up; 0 for none.
        weight_decay: λ or None, times η without the warm-up. Keras's moves the parameters and the average, and not the
            iterates, while ``gradtx.schedule_free_adamw`` has it in the direction.
        clipnorm, clipvalue, global_clipnorm, **options: as in ``sgd``; not ``use_ema``.

    Raises:
        ValueError: as ``sgd``, and for ``use_ema``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.schedule_free_adamw().rules]
    ['rms', 'debias', 'precondition', 'scale_by_learning_rate', 'average_iterates']
    """
    if options.get("use_ema", False):
        raise ValueError(
            "keras.schedule_free_adamw: use_ema would average an average; leave it out: the parameters are the same"
        )
    rate = learning_rate = _rate(learning_rate, options)
    if warmup_steps:
        rate = derived(
            lambda eta, share: eta * share,
            learning_rate,
            lambda count: jnp.minimum(1.0, (steps(count) + 1) / warmup_steps),
        )
    direction = chain(rules.rms(beta_2), rules.debias(), rules.precondition(epsilon))

    def average(where: Select) -> Chain:
        return chain(rules.average_iterates(pull=beta_1, where=where))

    averages = average(None)
    if weight_decay is not None:
        lost = derived(lambda eta, lam: eta * lam, learning_rate, weight_decay)
        averages = _of_decayed(
            options, lambda where: chain(decayed_average(pull=beta_1, decay=lost, where=where)), average
        )
    rest = [rules.scale_by_learning_rate(rate), averages]
    return _framed("schedule_free_adamw", (clipnorm, clipvalue, global_clipnorm), options, direction, *rest)


class decayed_average(rules.average_iterates):
    r"""``average_iterates`` of parameters that have decayed before, and the average with them: p ← p − δp.

    The iterates stay where they are, so that x moves by δp/κ.

    Args:
        rate, pull, learning_rate: as in ``average_iterates``.
        decay: δ.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.keras import decayed_average
    >>> tx, p = gradtx.chain(gradtx.sgd(1.0), decayed_average(0.0, pull=0.5, decay=0.1)), jnp.array([1.0])
    >>> p, state = gradtx.step(tx, p, jnp.zeros(1), tx.init(p))
    >>> print(p, gradtx.evaluation_point(state, p))
    [0.9] [0.8]
    """

    needs_params = True

    decay: Hyper = hyper(default=0.0)

    def tick(self, h, scalars, weights, count):
        c, after, weights = super().tick(h, scalars, weights, count)
        return Tick(c | {"decay": h.decay}, after, weights)

    def apply(self, signal, slots, param, c):
        lost = c.decay * param
        before = Named(average_offset=slots.average_offset - safe_divide(lost, c.pull))
        signal, after = super().apply(signal, before, param, c)
        return signal._replace(direction=signal.direction - lost), after


def muon(
    learning_rate: Hyper = 0.001,
    adam_beta_1: Hyper = 0.9,
    adam_beta_2: Hyper = 0.999,
    adam_weight_decay: Hyper | None = 0.004,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = 0.004,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
    exclude_layers: list[str] | None = None,
    exclude_embeddings: bool = True,
    muon_a: float = 3.4445,
    muon_b: float = -4.7750,
    muon_c: float = 2.0315,
    adam_lr_ratio: float = 1.0,
    momentum: Hyper = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    rms_rate: Hyper | None = 0.2,
    **options: Unpack[Options],
) -> Chain:
    """keras.optimizers.Muon: [clip,] heavy ball, orthogonalized, for matrices; AdamW for the other leaves.

    Args:
        learning_rate: η.
        adam_beta_1, adam_beta_2, epsilon: of AdamW, as in ``adam``.
        adam_weight_decay: λ of the other leaves, or None; times η, not times ``adam_lr_ratio``.
        weight_decay: λ of the matrices, or None.
        clipnorm, clipvalue, global_clipnorm: as in ``sgd``.
        exclude_layers: regular expressions; a matrix whose path has one of them in it gets AdamW.
        exclude_embeddings: whether one with "embedding" in it does.
        muon_a, muon_b, muon_c: coefficients of each iteration.
        adam_lr_ratio: AdamW's share of η.
        momentum: μ of the heavy ball.
        ns_steps: the number of iterations.
        nesterov: whether the heavy ball looks ahead.
        rms_rate: the root mean square to scale to; None: matrices are not scaled.
        **options: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> import jax.numpy as jnp
    >>> tx, params = keras.muon(0.1), {"kernel": jnp.ones((2, 2)), "embedding": jnp.ones((2, 2))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"].round(4)[0], updates["embedding"].round(4)[0])
    [-0.0102 -0.0102] [-0.1004 -0.1004]
    """

    def is_matrix(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
        embedding = exclude_embeddings and "embedding" in path.lower()
        return len(leaf.shape) == 2 and not embedding and not any(re.search(one, path) for one in exclude_layers or ())

    iterations = ((float(muon_a), float(muon_b), float(muon_c)),) * ns_steps
    size = [] if rms_rate is None else [rules.scale_by_shape(rms_rate)]
    direction = chain(rules.trace(momentum, nesterov), rules.orthogonalize(coefficients=iterations, eps=1e-7), *size)
    matrices = chain(direction, *_decay(weight_decay, options), _step(learning_rate, options))
    averages = chain(rules.momentum(adam_beta_1), rules.rms(adam_beta_2), rules.precondition(epsilon), rules.debias())
    share = [] if adam_lr_ratio == 1 else [rules.scale(adam_lr_ratio)]
    step = _step(learning_rate, options)
    others = chain(averages, *share, *_decay(adam_weight_decay, options), step)
    both = partition([(is_matrix, matrices)], default=others)
    return _framed("muon", (clipnorm, clipvalue, global_clipnorm), options, both)
