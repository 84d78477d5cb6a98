"""What the page of each optimizer shows beside its docstring. One that is missing makes the build fail."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure

import gradtx as gx
from docs.generate.pictures import valley

__all__ = ["OPTIMIZERS", "Way"]


class Way(NamedTuple):
    """How an optimizer goes down the valley.

    Attributes:
        learning_rate: which suits it there.
        caption: what there is to see.
    """

    learning_rate: float
    caption: str

    def draw(self, name: str) -> Figure:
        """Its way beside that of plain SGD, at a rate that this valley bears."""
        other = {"sgd": ("momentum_sgd", gx.momentum_sgd(0.3))}.get(name, ("sgd", gx.sgd(0.03)))
        return valley({name: getattr(gx, name)(self.learning_rate), other[0]: other[1]})


OPTIMIZERS: dict[str, Way] = {
    "sgd": Way(0.06, "The steep direction bounds the rate: at the edge of it, descent bounces across and crawls along."),
    "momentum_sgd": Way(0.3, "Along the valley gradients agree and add up; the average passes the minimum, and returns."),
    "nag": Way(0.3, "The same average, with gradients from one step ahead: it swings less."),
    "adagrad": Way(0.9, "Both directions are equally steep to it, so it goes straight. Its steps only shrink."),
    "rmsprop": Way(0.15, "Straight, and without slowing down: near the minimum steps are still as long as before."),
    "adam": Way(0.3, "RMSProp's straight line with momentum's inertia."),
    "adamw": Way(0.3, "As Adam; the decay of 1e-4 is too small to be seen here."),
    "amsgrad": Way(0.3, "As Adam, but the large first gradients are never forgotten: it settles earlier."),
    "nadam": Way(0.3, "Adam that looks ahead: it passes the minimum by less."),
    "nadamw": Way(0.3, "As Nadam; the decay of 1e-4 is too small to be seen here."),
    "article_adam": Way(0.15, "Without debiasing the first steps are three times as long."),
    "article_max_v": Way(0.15, "As the article's Adam, with a V that never falls."),
}
"""In the valley ½(w₁² + 30 w₂²), from (−4, 1)."""
