"""The review article's optimizers, as the workbench runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gradtx
from gradtx import Chain

__all__ = ["RECIPES", "Recipe", "make_optimizer"]


class Recipe(NamedTuple):
    """An optimizer to compare: its name in pictures, the function that makes it, and a learning rate that suits."""

    title: str
    make: Callable[[float], Chain]
    learning_rate: float


RECIPES: dict[str, Recipe] = {
    "sgd": Recipe("SGD", gradtx.sgd, 0.1),
    "momentum": Recipe("Momentum", gradtx.momentum_sgd, 0.2),
    "nag": Recipe("NAG", gradtx.nag, 0.2),
    "adagrad": Recipe("AdaGrad", gradtx.adagrad, 0.02),
    "rmsprop": Recipe("RMSProp", gradtx.rmsprop, 0.0005),
    "adam": Recipe("Adam", gradtx.adam, 0.001),
    "max_v": Recipe("max-V", gradtx.article_max_v, 0.001),
    "amsgrad": Recipe("AMSGrad", gradtx.amsgrad, 0.001),
    "nadam": Recipe("Nadam", gradtx.nadam, 0.001),
}
"""In the article's order. Learning rates are tuned for the digits, the default networks and 20 epochs."""


def make_optimizer(
    name: str,
    learning_rate: float,
    clip_norm: float | None = None,
    clip_layer: float | None = None,
    clip_value: float | None = None,
) -> Chain:
    """An optimizer by name, with gradient clipping in front of it where a limit is given.

    Args:
        name: one of ``RECIPES``.
        learning_rate: its learning rate.
        clip_norm: limit of the norm of the whole gradient.
        clip_layer: limit of the norm of each leaf, after ``clip_norm``.
        clip_value: limit of each element, after both.

    >>> print(make_optimizer("sgd", 0.5, clip_norm=1.0))
    clip_by_global_norm(1) → scale_by_learning_rate(0.5)
    """
    limits = {
        gradtx.clip_by_global_norm: clip_norm,
        gradtx.clip_by_norm: clip_layer,
        gradtx.clip_by_value: clip_value,
    }
    clips = [clip(limit) for clip, limit in limits.items() if limit is not None]
    return gradtx.chain(*clips, RECIPES[name].make(learning_rate))
