"""Optimizers that read the loss: ``step(tx, params, grads, state, value=loss)``."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import derived
from gradtx.rules import debias, decay_weights, momentum, rms, scale, scale_by_model
from gradtx.rules.base import Hyper, Rule

__all__ = ["momo", "momo_adam"]


def _decayed(learning_rate: Hyper, weight_decay: Hyper, decay_mask: Select) -> tuple[Rule, ...]:
    """The step downhill; w ← (w + u)/(1 + ηλ) with a decay, of the leaves that decay."""
    if _none(weight_decay) is None:
        return (scale(-1.0),)
    kept = derived(lambda eta, rate: 1 / (1 + eta * rate), learning_rate, weight_decay)
    lost = derived(lambda eta, rate: eta * rate / (1 + eta * rate), learning_rate, weight_decay)
    return scale(-1.0), scale(kept, where=decay_mask), decay_weights(1.0, lost, where=decay_mask)


def _none(weight_decay: Hyper) -> Hyper | None:
    return None if isinstance(weight_decay, int | float) and weight_decay == 0 else weight_decay


def momo(
    learning_rate: Hyper = 1.0,
    b1: Hyper = 0.9,
    minimum: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    adapt: bool = False,
    decay_mask: Select = None,
) -> Chain:
    """MoMo: momentum with the step that a model of the loss asks for; w ← w − min(η, model/‖m‖²)·m.

    Args:
        learning_rate: η, the longest step; rather too large than too small. 1 as in the paper. In the state it is
            ``most`` of ``scale_by_model``; with a decay it is in two further places: make such an optimizer anew.
        b1: β of the momentum in [0, 1). 0.9.
        minimum: f*, the loss at its minimum, or less. 0.
        weight_decay: λ, decoupled: the weights are divided by 1 + ηλ, which the model knows of.
        adapt: whether to estimate a higher f* on the way. False.
        decay_mask: which leaves decay, a selector as of ``where``; None: all, as the model takes it.

    When to use: SGD with momentum whose learning rate is not known, where the loss comes near ``minimum``. ``step``
    needs the loss: ``step(tx, params, grads, state, value=loss)``.

    Source: Schaipp et al. (2023), "MoMo: momentum models for adaptive learning rates", Algorithm 1.

    >>> import gradtx
    >>> print(gradtx.momo())
    momentum(0.9) → debias() → scale_by_model(0.9, 1, 0) → scale(-1)
    """
    model = scale_by_model(b1, learning_rate, minimum, None, _none(weight_decay), adapt=adapt)
    return chain(momentum(b1), debias(), model, *_decayed(learning_rate, weight_decay, decay_mask))


def momo_adam(
    learning_rate: Hyper = 1e-2,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    minimum: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    adapt: bool = False,
    decay_mask: Select = None,
) -> Chain:
    """MoMo-Adam: Adam with the step that a model of the loss asks for, η at most.

    Args:
        learning_rate: η, the longest step; rather too large than too small. 0.01 as in the paper. In the state as in
            ``momo``.
        b1, b2, eps: as in ``adam``.
        minimum, weight_decay, adapt, decay_mask: as in ``momo``.

    When to use: as ``momo``, where Adam would be taken.

    Source: Schaipp et al. (2023), "MoMo: momentum models for adaptive learning rates", Algorithm 2.

    >>> import gradtx
    >>> [rule.label for rule in gradtx.momo_adam().rules]
    ['momentum', 'rms', 'debias', 'scale_by_model', 'scale']
    """
    model = scale_by_model(b1, learning_rate, minimum, eps, _none(weight_decay), adapt=adapt)
    return chain(momentum(b1), rms(b2), debias(), model, *_decayed(learning_rate, weight_decay, decay_mask))
