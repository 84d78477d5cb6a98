"""The page of each optimizer, beside its docstring. One that is missing makes the build fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

import gradtx as gx
from docs.generate.pictures import cliff, valley

__all__ = ["OPTIMIZERS", "Way"]


class Way(NamedTuple):
    """How an optimizer goes down a narrow valley, or another ground, beside another one.

    Attributes:
        call: what makes it, as an expression in gradtx.
        beside: likewise, the other one.
        caption: what there is to see.
        ground: draws both on the ground that shows their difference.
        steps: that are drawn.
    """

    call: str
    beside: str
    caption: str
    ground: Callable[[dict[str, gx.Chain], int], Figure] = valley
    steps: int = 60

    def draw(self) -> Figure:
        """The picture: the very calls that are written below it."""
        labels = [call.partition("(")[0].replace("free_", "free_ ") for call in (self.call, self.beside)]
        chains = [eval(call, dict(vars(gx))) for call in (self.call, self.beside)]
        return self.ground(dict(zip(labels, chains, strict=True)), self.steps)


OPTIMIZERS: dict[str, Way] = {
    "sgd": Way(
        "sgd(0.06)",
        "momentum_sgd(0.3)",
        "The steep direction limits the rate. Just below 2/30, descent bounces across the valley and crawls along it.",
    ),
    "momentum_sgd": Way(
        "momentum_sgd(0.066)",
        "sgd(0.066)",
        "At the same learning rate. Across the valley gradients change their sign and cancel in the average, so the "
        "bouncing dies away. Along it they agree. Past the minimum the average carries on for a while.",
    ),
    "nag": Way(
        "nag(0.3)",
        "momentum_sgd(0.3)",
        "The same average, with gradients from one step ahead: it does not swing across.",
    ),
    "adagrad": Way(
        "adagrad(1.0)",
        "rmsprop(0.1)",
        "It never forgets the large gradients of the cliff: on the slope behind it its steps stay tiny.",
        cliff,
        600,
    ),
    "rmsprop": Way(
        "rmsprop(0.1)",
        "adagrad(1.0)",
        "Its average forgets the large gradients of the cliff within some fifty steps, so that it arrives.",
        cliff,
        600,
    ),
    "adam": Way(
        "adam(0.3)",
        "rmsprop(0.3)",
        "At the same learning rate. RMSProp is quick, but √v has forgotten all large gradients by the time it arrives, "
        "and a small one throws it out again. Adam averages g and g² for longer: it swings, comes near and stays.",
    ),
    "adamw": Way(
        "adamw(0.3, weight_decay=0.5)",
        "adam(0.3)",
        "A decay so strong that one sees it: it pulls towards zero, which is the minimum here.",
    ),
    "amsgrad": Way(
        "amsgrad(0.3, b2=0.9)",
        "adam(0.3, b2=0.9)",
        "The largest gradients are the first, and are not forgotten: no step grows.",
    ),
    "nadam": Way("nadam(0.3)", "adam(0.3)", "Adam that looks ahead passes the minimum by less."),
    "nadamw": Way("nadamw(0.3, weight_decay=0.5)", "nadam(0.3)", "A decay so strong that one sees it, as with AdamW."),
    "article_adam": Way(
        "article_adam(0.15)", "adam(0.15)", "Not debiased, the first steps are three times as long, and it swings more."
    ),
    "article_max_v": Way(
        "article_max_v(0.15, second_decay=0.9)",
        "article_adam(0.15, second_decay=0.9)",
        "With a V that never falls, steps shrink with the gradient.",
    ),
    "signum": Way(
        "signum(0.1)", "momentum_sgd(0.3)", "All steps are diagonal and equally long: it circles the minimum."
    ),
    "lion": Way("lion(0.1)", "signum(0.1)", "The gradient in the mixture turns it round earlier."),
    "rprop": Way("rprop(0.1)", "sgd(0.06)", "Each direction finds its own step size by trying."),
    "muon": Way(
        "muon(0.1)",
        "sgd(0.06)",
        "Here the two weights are a matrix of one row. Each step goes along the momentum, and is as long as η says.",
    ),
    "lars": Way(
        "lars(0.1, coefficient=0.3)",
        "sgd(0.06, momentum=0.5)",
        "Steps are a share of the weights: they shrink near zero.",
    ),
    "lamb": Way("lamb(0.1)", "adam(0.3)", "Steps are a share of the weights: they shrink near zero, the minimum here."),
    "cautious_adamw": Way(
        "cautious_adamw(0.3)",
        "adam(0.3)",
        "Where the momentum would go uphill it waits: it passes the minimum by less.",
    ),
    "qhm": Way("qhm(0.15, 0.9)", "momentum_sgd(0.3)", "The share of the gradient itself damps the swing."),
    "qhadam": Way("qhadam(0.3, 0.9)", "adam(0.3)", "The share of the gradient itself damps the swing."),
    "adamax": Way("adamax(0.3)", "adam(0.3)", "Divided by the largest gradient so far, which only fades."),
    "adabelief": Way("adabelief(0.1)", "adam(0.1)", "Gradients here are as expected, so it dares longer steps."),
    "radam": Way(
        "radam(0.1)",
        "adam(0.3)",
        "Five steps by its momentum alone. Then it divides by √v, and its steps are small and grow.",
    ),
    "adafactor": Way("adafactor(0.2)", "rmsprop(0.12)", "Steps are a share of the weights: they shrink near zero."),
    "yogi": Way("yogi(0.3)", "adam(0.3)", "Its second moment falls more slowly than Adam's."),
    "adadelta": Way("adadelta(30.0)", "rmsprop(0.12)", "It starts slowly: the first steps are √ε long."),
    "laprop": Way("laprop(0.3)", "adam(0.3)", "Divided first and averaged afterwards: much the same on a smooth way."),
    "adopt": Way(
        "adopt(0.3, b2=0.99)", "adam(0.3, b2=0.99)", "The first step is none; then no gradient divides itself."
    ),
    "ademamix": Way("ademamix(0.05, b3=0.95)", "adam(0.3)", "The slow average goes on where the quick one would turn."),
    "adan": Way(
        "adan(0.3)", "adam(0.3)", "Its average is slower than Adam's, and swings further; the changes brake it."
    ),
    "mars": Way("mars(0.3)", "adam(0.3)", "The gradient, corrected by its last change."),
    "asgd": Way(
        "asgd(0.06, start=0)", "sgd(0.06)", "The parameters held are SGD's; the average of them is what counts."
    ),
    "schedule_free_sgd": Way(
        "schedule_free_sgd(0.06)", "sgd(0.06)", "The points held lie between the iterates and their average."
    ),
    "schedule_free_adamw": Way(
        "schedule_free_adamw(0.3)", "adam(0.3)", "The points held lie between the iterates and their average."
    ),
    "novograd": Way("novograd(0.1)", "momentum_sgd(0.3)", "Both directions are divided by one norm: it swings on."),
    "fromage": Way("fromage(0.1)", "sgd(0.06)", "Steps are a share of the weights: they shrink near zero."),
    "sm3": Way("sm3(0.9)", "adagrad(0.9)", "Of a matrix of one row it is AdaGrad, here with momentum."),
    "madgrad": Way("madgrad(0.3)", "adagrad(0.9)", "Steps from the start, of which a tenth is gone each time."),
    "dog": Way("dog(initial=0.01)", "sgd(0.06)", "It starts with tiny steps, and finds their length by itself."),
    "prodigy": Way(
        "prodigy(initial=0.01)", "adam(0.3)", "It starts with tiny steps, and finds a rate by itself: a long one here."
    ),
    "dadapt_adam": Way(
        "dadapt_adam(initial=0.01)",
        "prodigy(initial=0.01)",
        "With averages in the place of sums its bound grows too far here, and so do its steps; Prodigy swings less.",
    ),
    "cocob": Way(
        "cocob(alpha=10.0)",
        "adagrad(0.9)",
        "Each weight bets more the longer its gradients agree, and less at once when they do not.",
    ),
    "momo": Way("momo()", "sgd(0.06)", "Told the loss, and that it can fall to 0, it takes no rate."),
    "momo_adam": Way("momo_adam(1.0)", "adam(0.3)", "Adam's direction, as long as the loss says, 1 at most."),
    "galore": Way(
        "galore(0.3, factor=0.5)",
        "adam(0.3)",
        "One row has one direction, and all of it is in that: this is Adam at half of the rate.",
    ),
    "shampoo": Way("shampoo(0.9)", "adagrad(0.9)", "The row has a matrix of two by two, and the column a number."),
    "soap": Way("soap(0.3)", "adam(0.3)", "The valley lies along the axes: its basis is Adam's."),
}
