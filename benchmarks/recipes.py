"""The same optimizers in gradtx, optax and torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax
import optax.contrib

import gradtx
from gradtx import dialects

__all__ = ["RECIPES", "ZOO", "Recipe", "scales"]

RATE, DECAY, CLIP = 1e-3, 1e-2, 1.0


class Recipe(NamedTuple):
    """An optimizer.

    Attributes:
        gradtx: as a chain.
        optax: as optax has it.
        torch: makes torch's from parameters and flags; None if torch has none.
        fused: whether torch has it fused.
        clip: the norm that torch clips the gradients to before a step; None: it does not.
        differing: ``optax`` or ``torch`` as a chain, where what it has under this name is another algorithm.
        learning_rate_of_floor: None if the floor in C has another equation.
    """

    gradtx: optax.GradientTransformation
    optax: optax.GradientTransformation
    torch: Callable[[Sequence[Any], Mapping[str, bool]], Any] | None = None
    fused: bool = True
    clip: float | None = None
    differing: Mapping[str, optax.GradientTransformation] = {}
    learning_rate_of_floor: float | None = None


def _torch(name: str, **arguments: Any) -> Callable[[Sequence[Any], Mapping[str, bool]], Any]:
    def make(params: Sequence[Any], flags: Mapping[str, bool]) -> Any:
        import torch

        return getattr(torch.optim, name)(params, **arguments, **flags)

    return make


RECIPES = {
    "adam": Recipe(gradtx.adam(RATE), optax.adam(RATE), _torch("Adam", lr=RATE), learning_rate_of_floor=RATE),
    "clip-adamw": Recipe(
        gradtx.chain(gradtx.clip_by_global_norm(CLIP), gradtx.adamw(RATE, weight_decay=DECAY)),
        optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY)),
        _torch("AdamW", lr=RATE, weight_decay=DECAY),
        clip=CLIP,
    ),
    "amsgrad": Recipe(
        gradtx.amsgrad(RATE),
        optax.amsgrad(RATE),
        _torch("Adam", lr=RATE, amsgrad=True),
        differing={"optax": gradtx.dialects.optax.amsgrad(RATE)},  # it debiases before it takes the maximum
    ),
    "nadam": Recipe(
        gradtx.nadam(RATE),
        optax.nadam(RATE),
        _torch("NAdam", lr=RATE),
        fused=False,
        differing={"torch": gradtx.dialects.torch.nadam(lr=RATE)},  # its momentum has a schedule
    ),
}


def scales(rules: int) -> Recipe:
    """A chain of so many rules that do next to nothing."""
    factor = 1.0001
    return Recipe(
        gradtx.chain(*[gradtx.scale(factor) for _ in range(rules)]),
        optax.chain(*[optax.scale(factor) for _ in range(rules)]),
    )


NO_OPTIMIZERS = {"clip", "clip_by_global_norm", "mechanize", "momo", "momo_adam", "polyak_sgd"}
"""In the dialect of optax: parts of optimizers, what goes around one, and those that need the loss."""


OF_TORCH = {
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adamax": "Adamax",
    "adadelta": "Adadelta",
    "adafactor": "Adafactor",
}
"""The classes of torch.optim, by optax's names for the same optimizers; its Muon takes matrices alone."""

FUSED = {"sgd", "adagrad", "adam", "adamw"}
"""Those of them that torch has fused on a CPU."""


def _of_optax(name: str) -> Recipe:
    """An optimizer of optax or optax.contrib with default arguments, and gradtx's dialect of it; torch's likewise."""
    theirs = getattr(optax, name, None) or getattr(optax.contrib, name)
    ours = getattr(dialects.optax, name)(RATE)
    if name not in OF_TORCH:
        return Recipe(ours, theirs(RATE))
    differing = {"torch": getattr(dialects.torch, name)(lr=RATE)}  # with torch's defaults
    return Recipe(ours, theirs(RATE), _torch(OF_TORCH[name], lr=RATE), name in FUSED, differing=differing)


ZOO = {name: _of_optax(name) for name in dialects.optax.__all__ if name not in NO_OPTIMIZERS}
