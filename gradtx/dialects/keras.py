"""Keras's optimizers, with Keras's argument names, defaults and order (Keras 3.15).

What is Keras's own: the order is clip, decay, step; weight decay is decoupled in every optimizer; the learning rate
stands inside the momentum; Adam has its epsilon on the second moment before debiasing ("epsilon hat"), Adagrad and
RMSprop inside the root, and Nadam (whatever its docstring says) outside the root of the debiased one; Nadam's
schedule decays with 0.96ᵗ.

Where gradtx differs: a clip threshold that is not positive is an error, where Keras silently clips nothing.
``clipnorm`` makes a whole leaf NaN for a gradient that is not finite.
"""

from __future__ import annotations

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._rule import Hyper, Rule
from gradtx.dialects._zero import is_zero

__all__ = ["adagrad", "adam", "adamw", "nadam", "rmsprop", "sgd"]


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


def _decay(weight_decay: Hyper | None) -> list[Rule]:
    return [] if weight_decay is None else [rules.add_decayed_weights(weight_decay)]


def _velocity(learning_rate: Hyper, momentum: Hyper, nesterov: bool, weight_decay: Hyper | None) -> list[Rule]:
    """Learning rate, momentum, decay: the velocity form, in which the decay must pass the momentum by."""
    if is_zero(momentum):
        return [*_decay(weight_decay), rules.scale_by_learning_rate(learning_rate)]
    decay = [] if weight_decay is None else [rules.decay_weights(learning_rate, weight_decay)]
    return [rules.scale_by_learning_rate(learning_rate), rules.trace(momentum, nesterov), *decay]


def sgd(
    learning_rate: Hyper = 0.01,
    momentum: Hyper = 0.0,
    nesterov: bool = False,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
) -> Chain:
    """keras.optimizers.SGD: [clip,] learning rate, [heavy ball,] [decay].

    Args:
        learning_rate: η, inside the momentum.
        momentum: μ; the number 0 for none.
        nesterov: Nesterov's form; without momentum it does nothing, as in Keras.
        weight_decay: λ of decoupled decay, or None.
        clipnorm, clipvalue, global_clipnorm: at most one clip: by each leaf's norm, by value, by the norm of all.

    Raises:
        ValueError: for more than one clip, or one that is not positive.

    >>> from gradtx.dialects import keras
    >>> print(keras.sgd(momentum=0.9, clipnorm=1.0))
    clip_by_norm(1) → scale_by_learning_rate(0.01) → trace(0.9, False)
    """
    clip = _clip(clipnorm, clipvalue, global_clipnorm)
    return chain(*clip, *_velocity(learning_rate, momentum, nesterov, weight_decay))


def adagrad(
    learning_rate: Hyper = 0.001,
    initial_accumulator_value: Hyper = 0.1,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
) -> Chain:
    """keras.optimizers.Adagrad: [clip,] sum, division with epsilon inside the root, [decay,] learning rate.

    Args:
        learning_rate: η.
        initial_accumulator_value: what the sum starts at.
        epsilon: ε, inside the root.
        weight_decay, clipnorm, clipvalue, global_clipnorm: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.adagrad())
    adagrad_sum(0.1) → precondition(0, 1e-07) → scale_by_learning_rate(0.001)
    """
    clip = _clip(clipnorm, clipvalue, global_clipnorm)
    direction = chain(*clip, rules.adagrad_sum(initial_accumulator_value), rules.precondition(0.0, epsilon))
    return chain(direction, *_decay(weight_decay), rules.scale_by_learning_rate(learning_rate))


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
) -> Chain:
    """keras.optimizers.RMSprop: [clip,] RMS, division with epsilon in the root, learning rate, [heavy ball,] [decay].

    Args:
        learning_rate: η, inside the momentum.
        rho: the decay of the average.
        momentum: μ of a heavy ball; the number 0 for none.
        epsilon: ε, inside the root.
        centered: whether to divide by the root of the variance.
        weight_decay, clipnorm, clipvalue, global_clipnorm: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.rmsprop(momentum=0.9))
    rms(0.9) → precondition(0, 1e-07) → scale_by_learning_rate(0.001) → trace(0.9, False)
    """
    second_moment = rules.centered_rms(rho) if centered else rules.rms(rho)
    direction = chain(*_clip(clipnorm, clipvalue, global_clipnorm), second_moment, rules.precondition(0.0, epsilon))
    return chain(direction, *_velocity(learning_rate, momentum, False, weight_decay))


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
) -> Chain:
    """keras.optimizers.Adam: [clip,] moments, [maximum,] division, and only then debias; [decay,] learning rate.

    Args:
        learning_rate: η.
        beta_1: the decay of the first moment.
        beta_2: the decay of the second moment.
        epsilon: "epsilon hat", added to the root before debiasing.
        amsgrad: whether to take the maximum of the second moment over time.
        weight_decay, clipnorm, clipvalue, global_clipnorm: as in ``sgd``. With decay it is AdamW.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.adam())
    momentum(0.9) → rms(0.999) → precondition(1e-07, 0) → debias() → scale_by_learning_rate(0.001)
    """
    maximum = [rules.max_v()] if amsgrad else []
    averages = chain(*_clip(clipnorm, clipvalue, global_clipnorm), rules.momentum(beta_1), rules.rms(beta_2), *maximum)
    direction = chain(averages, rules.precondition(epsilon), rules.debias())
    return chain(direction, *_decay(weight_decay), rules.scale_by_learning_rate(learning_rate))


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
) -> Chain:
    """keras.optimizers.AdamW: ``adam`` with decoupled decay, 0.004 by default.

    Args:
        learning_rate: η; it multiplies the decay too.
        weight_decay: λ.
        beta_1, beta_2, epsilon, amsgrad, clipnorm, clipvalue, global_clipnorm: as in ``adam``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> [rule.label for rule in keras.adamw().rules][-2:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    return adam(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, clipnorm, clipvalue, global_clipnorm)


def nadam(
    learning_rate: Hyper = 0.001,
    beta_1: Hyper = 0.9,
    beta_2: Hyper = 0.999,
    epsilon: Hyper = 1e-7,
    weight_decay: Hyper | None = None,
    clipnorm: Hyper | None = None,
    clipvalue: Hyper | None = None,
    global_clipnorm: Hyper | None = None,
) -> Chain:
    """keras.optimizers.Nadam: Nadam with a momentum schedule that decays 250 times as fast as torch's.

    Args:
        learning_rate: η.
        beta_1: the decay of the first moment.
        beta_2: the decay of the second moment.
        epsilon: ε, outside the root of the debiased second moment.
        weight_decay, clipnorm, clipvalue, global_clipnorm: as in ``sgd``.

    Raises:
        ValueError: as ``sgd``.

    >>> from gradtx.dialects import keras
    >>> print(keras.nadam())
    nesterov(0.9, 1) → rms(0.999) → debias() → precondition(1e-07, 0) → scale_by_learning_rate(0.001)
    """
    averages = chain(*_clip(clipnorm, clipvalue, global_clipnorm), rules.nesterov(beta_1, 1.0), rules.rms(beta_2))
    direction = chain(averages, rules.debias(), rules.precondition(epsilon))
    return chain(direction, *_decay(weight_decay), rules.scale_by_learning_rate(learning_rate))
