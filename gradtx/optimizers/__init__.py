"""Optimizers as recipes: each is a chain of elementary rules, and nothing else.

Every recipe takes the learning rate as a number, a scalar array or a schedule (the first step sees it at count 0),
as it takes every other hyperparameter. Defaults are those of the original paper where it names any, else those of
optax. What each rule does, its state and its source stand with the rule, in ``gradtx.rules``.
"""

from gradtx.optimizers.adaptive import (
    adabelief,
    adadelta,
    adamax,
    adan,
    ademamix,
    adopt,
    laprop,
    mars,
    qhadam,
    qhm,
    radam,
    yogi,
)
from gradtx.optimizers.averaged import asgd, schedule_free_adamw, schedule_free_sgd
from gradtx.optimizers.classics import (
    adagrad,
    adam,
    adamw,
    amsgrad,
    article_adam,
    article_max_v,
    momentum_sgd,
    nadam,
    nadamw,
    nag,
    rmsprop,
    sgd,
)
from gradtx.optimizers.distances import dog, prodigy
from gradtx.optimizers.kronecker import shampoo, soap
from gradtx.optimizers.layerwise import adafactor, cautious_adamw, fromage, lamb, lars, novograd, sm3
from gradtx.optimizers.leaders import madgrad
from gradtx.optimizers.matrices import muon
from gradtx.optimizers.signs import lion, rprop, signum

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "article_adam",
    "article_max_v",
    "asgd",
    "cautious_adamw",
    "dog",
    "fromage",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "madgrad",
    "mars",
    "momentum_sgd",
    "muon",
    "nadam",
    "nadamw",
    "nag",
    "novograd",
    "prodigy",
    "qhadam",
    "qhm",
    "radam",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "shampoo",
    "signum",
    "sm3",
    "soap",
    "yogi",
]
