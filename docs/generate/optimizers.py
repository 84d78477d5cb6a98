"""What the page of each optimizer shows beside its docstring. One that is missing makes the build fail."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

import gradtx as gx
from docs.generate.pictures import valley

__all__ = ["OPTIMIZERS", "Way"]


class Way(NamedTuple):
    """How an optimizer goes down a narrow valley, beside another one.

    Attributes:
        call: what makes it, as an expression in gradtx.
        beside: likewise, the other one.
        caption: what there is to see.
    """

    call: str
    beside: str
    caption: str

    def draw(self) -> Figure:
        """The picture: the very calls that are written below it."""
        return valley({call.partition("(")[0]: eval(call, dict(vars(gx))) for call in (self.call, self.beside)})


OPTIMIZERS: dict[str, Way] = {
    "sgd": Way(
        "sgd(0.06)",
        "momentum_sgd(0.3)",
        "The steep direction bounds the rate: just below 2/30 descent bounces across the valley, and crawls along it.",
    ),
    "momentum_sgd": Way(
        "momentum_sgd(0.3)",
        "sgd(0.03)",
        "Along the valley gradients agree and add up. The average swings across it, and past the minimum.",
    ),
    "nag": Way(
        "nag(0.3)",
        "momentum_sgd(0.3)",
        "The same average, with gradients from one step ahead: it does not swing across.",
    ),
    "adagrad": Way(
        "adagrad(0.9)", "sgd(0.03)", "Both directions are equally steep to it. Steps shrink with the sum of squares."
    ),
    "rmsprop": Way(
        "rmsprop(0.12)",
        "adagrad(0.9)",
        "The average forgets large gradients, so steps do not shrink: slower here at first.",
    ),
    "adam": Way(
        "adam(0.3)", "rmsprop(0.12)", "Averages on both sides of the quotient: momentum's inertia comes on top."
    ),
    "adamw": Way(
        "adamw(0.3, weight_decay=0.5)",
        "adam(0.3)",
        "A strong decay, to be seen: it pulls towards zero, the minimum here.",
    ),
    "amsgrad": Way(
        "amsgrad(0.3, b2=0.9)",
        "adam(0.3, b2=0.9)",
        "The largest gradients are the first, and are not forgotten: no step grows.",
    ),
    "nadam": Way("nadam(0.3)", "adam(0.3)", "Adam that looks ahead passes the minimum by less."),
    "nadamw": Way("nadamw(0.3, weight_decay=0.5)", "nadam(0.3)", "A strong decay, to be seen, as with AdamW."),
    "article_adam": Way(
        "article_adam(0.15)", "adam(0.15)", "Not debiased, the first steps are three times as long, and it swings more."
    ),
    "article_max_v": Way(
        "article_max_v(0.15, second_decay=0.9)",
        "article_adam(0.15, second_decay=0.9)",
        "With a V that never falls, steps shrink with the gradient.",
    ),
}
