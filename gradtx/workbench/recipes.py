"""The optimizers of the workbench: the review article's first, then their relatives, each at a rate that suits."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optax

import gradtx
from gradtx import Chain

__all__ = ["ALIASES", "ARTICLE", "BATCH_SIZE", "FACTOR", "RECIPES", "USERS", "Recipe", "make_optimizer", "recipe_of"]

BATCH_SIZE = 32
"""The images in a mini-batch for which the learning rates below are tuned."""


FACTOR = "rate.factor"
"""The factor of a ``scale`` named "rate" that a sweep puts behind the rest of a chain."""


class Recipe(NamedTuple):
    """An optimizer to compare.

    Attributes:
        title: its name in tables and pictures.
        make: the optimizer of a learning rate and of the number of steps that the training takes.
        learning_rate: near the best of ``gradtx compare --sweep`` for batches of ``BATCH_SIZE``.
        swept: the hyperparameters that are the learning rate, as names for all of which it is the value, or as a
            function of it; ``FACTOR`` where it follows a schedule.
    """

    title: str
    make: Callable[[float, int], Chain]
    learning_rate: float
    swept: tuple[str, ...] | Callable[[float], dict[str, float]] = ("learning_rate",)

    def rate(self, batch_size: int) -> float:
        """A learning rate that suits batches of this size, to two digits.

        Below ``BATCH_SIZE`` it is proportional to the size: there noise is what limits a step, and an epoch goes as far
        with many small steps as with few long ones. Above, curvature limits a step more and more, and the rate grows
        with the cube root only.

        >>> sgd = RECIPES["sgd"]
        >>> sgd.rate(BATCH_SIZE) == sgd.learning_rate, sgd.rate(8) == sgd.learning_rate / 4
        (True, True)
        """
        times = batch_size / BATCH_SIZE
        return float(f"{self.learning_rate * (times if times <= 1 else times ** (1 / 3)):.2g}")

    def point(self, rate: float) -> dict[str, float]:
        """The hyperparameters of an optimizer that was made at ``learning_rate``, for another rate.

        >>> RECIPES["sgd"].point(0.5), RECIPES["asgd"].point(0.5)
        ({'learning_rate': 0.5}, {'rate.factor': 2.5})
        """
        if callable(self.swept):
            return self.swept(rate)
        return {name: rate / self.learning_rate if name == FACTOR else rate for name in self.swept}


def _plain(optimizer: Callable[[float], optax.GradientTransformation]) -> Callable[[float, int], Chain]:
    """A recipe that does not ask how long the training takes."""
    return lambda learning_rate, steps: gradtx.chain(optimizer(learning_rate))


def _adam_then_sgd(learning_rate: float, steps: int) -> Chain:
    """Adam for the first half, then momentum, at rates that are to each other as those of the two alone."""
    ratio = ARTICLE["momentum"].learning_rate / ARTICLE["adam"].learning_rate
    first, then = gradtx.adam(learning_rate), gradtx.momentum_sgd(ratio * learning_rate)
    return gradtx.chain(gradtx.switch(steps // 2, first, then))


def _swats(learning_rate: float, steps: int) -> Chain:
    """SWATS for a short training: Adam for a quarter of it at least, and a tolerance that is met soon after."""
    return gradtx.chain(gradtx.swats(learning_rate, rtol=0.01, min_steps=max(1, steps // 4)))


def _rprop(learning_rate: float, steps: int) -> Chain:
    """Rprop for mini-batches, whose signs are noise in part: step sizes stay within a decade."""
    return gradtx.chain(gradtx.rprop(learning_rate, low=learning_rate / 10, high=learning_rate))


ARTICLE: dict[str, Recipe] = {
    "sgd": Recipe("SGD", _plain(gradtx.sgd), 0.2),
    "momentum": Recipe("Momentum", _plain(gradtx.momentum_sgd), 0.2),
    "nag": Recipe("NAG", _plain(gradtx.nag), 0.2),
    "adagrad": Recipe("AdaGrad", _plain(gradtx.adagrad), 0.07),
    "rmsprop": Recipe("RMSProp", _plain(gradtx.rmsprop), 0.001),
    "adam": Recipe("Adam", _plain(gradtx.adam), 0.003),
    "max_v": Recipe("max-V", _plain(gradtx.article_max_v), 0.003),
    "amsgrad": Recipe("AMSGrad", _plain(gradtx.amsgrad), 0.003),
    "nadam": Recipe("Nadam", _plain(gradtx.nadam), 0.003),
}
"""The review article's, in its order: what is compared if nothing else is asked for."""

_RATE = "scale_by_learning_rate.learning_rate"  # of a chain with another one
_MADGRAD = 0.002


def _cocob(learning_rate: float, steps: int) -> Chain:
    """The first steps are inverse to α, which is 100 at a rate of 1."""
    return gradtx.cocob(alpha=100 / learning_rate)


def _of_cocob(rate: float) -> dict[str, float]:
    """The α of a rate."""
    return {"coin_betting.alpha": 100 / rate}


def _of_rprop(rate: float) -> dict[str, float]:
    """The step sizes at the start, and their bounds."""
    return {"initial": rate, "low": rate / 10, "high": rate}


def _of_fromage(rate: float) -> dict[str, float]:
    """The step, and by how much the weights shrink to keep their norm."""
    return {_RATE: rate / (1 + rate**2) ** 0.5, "decay_weights.rate": 1 - 1 / (1 + rate**2) ** 0.5}


def _of_madgrad(rate: float) -> dict[str, float]:
    """Gradients are weighed by η√t: their sum, divided by the cube root of that of squares, grows with η to the 2/3."""
    return {"scale_2.factor": -((rate / _MADGRAD) ** (2 / 3))}


RECIPES: dict[str, Recipe] = ARTICLE | {
    "adam_then_sgd": Recipe("Adam→SGD", _adam_then_sgd, 0.003, (FACTOR,)),
    "swats": Recipe("SWATS", _swats, 0.001),
    "article_adam": Recipe("raw Adam", _plain(gradtx.article_adam), 0.003),
    "adamw": Recipe("AdamW", _plain(gradtx.adamw), 0.003),
    "nadamw": Recipe("NadamW", _plain(gradtx.nadamw), 0.003),
    "adamax": Recipe("Adamax", _plain(gradtx.adamax), 0.02),
    "radam": Recipe("RAdam", _plain(gradtx.radam), 0.007),
    "adabelief": Recipe("AdaBelief", _plain(gradtx.adabelief), 0.003),
    "yogi": Recipe("Yogi", _plain(gradtx.yogi), 0.004),
    "laprop": Recipe("LaProp", _plain(gradtx.laprop), 0.003),
    "adopt": Recipe("ADOPT", _plain(gradtx.adopt), 0.003),
    "ademamix": Recipe("AdEMAMix", _plain(gradtx.ademamix), 0.002),
    "adan": Recipe("Adan", _plain(gradtx.adan), 0.005),
    "mars": Recipe("MARS", _plain(gradtx.mars), 0.002),
    "cautious_adamw": Recipe("C-AdamW", _plain(gradtx.cautious_adamw), 0.003),
    "qhm": Recipe("QHM", _plain(gradtx.qhm), 0.3),
    "qhadam": Recipe("QHAdam", _plain(gradtx.qhadam), 0.003),
    "adadelta": Recipe("Adadelta", _plain(gradtx.adadelta), 3),
    "adafactor": Recipe("Adafactor", _plain(gradtx.adafactor), 0.02),
    "signum": Recipe("Signum", _plain(gradtx.signum), 0.0003),
    "lion": Recipe("Lion", _plain(gradtx.lion), 0.0002),
    "rprop": Recipe("Rprop", _rprop, 0.003, _of_rprop),
    "muon": Recipe("Muon", _plain(gradtx.muon), 0.003, (f"matrix.{_RATE}",)),
    "lars": Recipe("LARS", _plain(gradtx.lars), 0.4),
    "lamb": Recipe("LAMB", _plain(gradtx.lamb), 0.001),
    "novograd": Recipe("NovoGrad", _plain(gradtx.novograd), 0.003),
    "fromage": Recipe("Fromage", _plain(gradtx.fromage), 0.003, _of_fromage),
    "sm3": Recipe("SM3", _plain(gradtx.sm3), 0.1),
    "shampoo": Recipe("Shampoo", _plain(functools.partial(gradtx.shampoo, every=10)), 0.1),
    "soap": Recipe("SOAP", _plain(gradtx.soap), 0.003),
    "dog": Recipe("DoG", _plain(gradtx.dog), 1.0),
    "prodigy": Recipe("Prodigy", _plain(gradtx.prodigy), 1.0, ("in_units_of_distance.learning_rate", _RATE)),
    "dadapt_adam": Recipe("D-Adapt Adam", _plain(gradtx.dadapt_adam), 0.3, ("scale_by_distance_bound.learning_rate",)),
    "cocob": Recipe("COCOB", _cocob, 3.0, _of_cocob),
    "momo": Recipe("MoMo", _plain(gradtx.momo), 3.0, ("scale_by_model.most",)),
    "momo_adam": Recipe("MoMo-Adam", _plain(gradtx.momo_adam), 0.3, ("scale_by_model.most",)),
    "galore": Recipe("GaLore", _plain(functools.partial(gradtx.galore, rank=16)), 0.03),
    "madgrad": Recipe("MADGRAD", _plain(gradtx.madgrad), _MADGRAD, _of_madgrad),
    "asgd": Recipe("ASGD", _plain(functools.partial(gradtx.asgd, start=0)), 0.2, (FACTOR,)),
    "schedule_free_sgd": Recipe("SF-SGD", _plain(gradtx.schedule_free_sgd), 0.3, (_RATE,)),
    "schedule_free_adamw": Recipe("SF-AdamW", _plain(gradtx.schedule_free_adamw), 0.01, (_RATE,)),
}
"""All: every optimizer of ``gradtx.optimizers``, and Adam that changes over to SGD."""

ALIASES = {"momentum_sgd": "momentum", "article_max_v": "max_v"}
"""The names that ``gradtx`` has for optimizers with a shorter name here."""


USERS: dict[str, Recipe] = {}
"""Those of users, in the order in which they were asked for, as ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``."""


def recipe_of(name: str) -> Recipe:
    """The recipe of this name: of ``RECIPES``, or of a user's function of a learning rate.

    Raises:
        FileNotFoundError, ModuleNotFoundError, AttributeError: for a file, module or function that there is not.

    >>> recipe_of("gradtx.dialects.optax:adamw").title
    'adamw'
    """
    if name not in RECIPES and name not in USERS:
        source, _, function = name.rpartition(":")
        make, rate = _plain(getattr(_module(source), function)), RECIPES["adam"].learning_rate
        rates = [rule for rule in make(rate, 1).rules if "learning_rate" in rule.hyperparameters()]
        USERS[name] = Recipe(function, make, rate, ("learning_rate",) if len(rates) == 1 else (FACTOR,))
    return RECIPES[name] if name in RECIPES else USERS[name]


def _module(source: str) -> Any:
    """The module of this name, or in this file."""
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source).resolve(strict=True)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))  # for its neighbours
    sys.modules.setdefault(path.stem, module)  # where dataclasses look for what annotations name
    spec.loader.exec_module(module)
    return module


def make_optimizer(
    name: str,
    learning_rate: float,
    clip_norm: float | None = None,
    clip_layer: float | None = None,
    clip_value: float | None = None,
    weight_decay: float | None = None,
    steps: int = 1000,
) -> Chain:
    """An optimizer by name, with clips and weight decay in front of it where a number for them is given.

    Args:
        name: as for ``recipe_of``.
        learning_rate: its learning rate.
        clip_norm: limit of the norm of the whole gradient.
        clip_layer: limit of the norm of each leaf, after ``clip_norm``.
        clip_value: limit of each element, after both.
        weight_decay: what times the parameters is added to the gradient, after the clips.
        steps: of the training, for the optimizers that change over at some time of it.

    >>> print(make_optimizer("sgd", 0.5, clip_norm=1.0))
    clip_by_global_norm(1) → scale_by_learning_rate(0.5)
    """
    in_front = {
        gradtx.clip_by_global_norm: clip_norm,
        gradtx.clip_by_norm: clip_layer,
        gradtx.clip_by_value: clip_value,
        gradtx.add_decayed_weights: weight_decay,
    }
    rules = [rule(number) for rule, number in in_front.items() if number is not None]
    return gradtx.chain(*rules, recipe_of(name).make(learning_rate, steps))
