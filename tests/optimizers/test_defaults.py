"""The defaults of optimizers: those of the paper or its authors, or of optax's namesake."""

import inspect

import optax
import optax.contrib

from gradtx import optimizers

ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
ARTICLE = {"decay": 0.9, "second_decay": 0.999, "eps": 0.0}
OFF = {"weight_decay": 0.0}  # and None, and ()
SOURCES = {
    "adadelta": {"learning_rate": 1.0, "decay": 0.95},  # Zeiler (2012); torch.optim.Adadelta
    "adafactor": {"learning_rate": 1e-2, "power": 0.8, "clip": 1.0, "least": 128},  # Shazeer & Stern (2018)
    "adagrad": {"initial": 0.0, "eps": 1e-8, "eps_root": 0.0},  # Duchi, Hazan & Singer (2011), and precondition's
    "adamax": {"b1": 0.9, "b2": 0.999},  # Kingma & Ba (2015), Algorithm 2
    "article_adam": ARTICLE,
    "article_max_v": ARTICLE,
    "asgd": {"learning_rate": 1e-2, "decay": 1e-4, "power": 0.75, "start": 1_000_000},  # torch.optim.ASGD
    "cautious_adamw": ADAM | {"weight_decay": 1e-4},  # as adamw
    "dadapt_adam": ADAM | {"learning_rate": 1.0, "initial": 1e-6},  # dadaptation.DAdaptAdam
    "dog": {"initial": 1e-6, "weight_decay": 0.0},  # Ivgi, Hinder & Carmon (2023)
    "fromage": {"floor": 0.0},  # Bernstein et al. (2020), Algorithm 1
    "galore": ADAM | {"learning_rate": 1e-2, "factor": 0.25, "every": 200, "stacked": 0},  # galore_torch.GaLoreAdamW
    "laprop": ADAM,  # Ziyin et al. (2020)
    "lars": {"decay": 0.9, "coefficient": 0.001},  # You, Gitman & Ginsburg (2017)
    "lion": {"weight_decay": 0.0},  # lion_pytorch.Lion
    "mars": {"b1": 0.95, "b2": 0.99, "gamma": 0.025, "eps": 1e-8},  # Yuan et al. (2024)
    "momentum_sgd": {"decay": 0.9},  # the article: 0.85 to 0.95
    "momo": {"b1": 0.9, "minimum": 0.0, "adapt": False},  # momo.Momo
    "momo_adam": {"minimum": 0.0, "adapt": False},  # momo.MomoAdam
    "muon": {"learning_rate": 0.02, "decay": 0.95, "output": -1},  # Jordan et al. (2024); Flax has the outputs last
    "nag": {"decay": 0.9, "lookahead": 1.0},  # the article
    "novograd": {"b1": 0.95, "b2": 0.98, "eps": 1e-8},  # Ginsburg et al. (2019)
    "prodigy": {"b1": 0.9, "b2": 0.999, "initial": 1e-6, "coefficient": 1.0},  # prodigyopt.Prodigy
    "qhadam": {"b1": 0.995, "b2": 0.999, "nu1": 0.7, "nu2": 1.0, "eps": 1e-8},  # qhoptim.QHAdam
    "qhm": {"decay": 0.999, "nu": 0.7},  # qhoptim.QHM
    "rmsprop": {"eps_root": 0.0},
    "rprop": {"learning_rate": 1e-2, "shrink": 0.5, "grow": 1.2, "low": 1e-6, "high": 50.0},  # torch.optim.Rprop
    "schedule_free_sgd": {"weight_decay": 0.0},  # schedulefree.SGDScheduleFree
    "shampoo": {"b1": 0.9, "eps": 1e-4, "every": 1, "largest": 1024},
    "signum": {"decay": 0.9},  # Bernstein et al. (2018)
    "sm3": {"b1": 0.9, "eps": 1e-8},  # optax.scale_by_sm3
    "soap": {"learning_rate": 3e-3, "b1": 0.95, "b2": 0.95, "eps": 1e-8, "every": 10, "largest": 10_000},  # Vyas et al.
}
"""Where optax has another default, or no such argument."""


def test_every_default():
    for name in optimizers.__all__:
        theirs = getattr(optax, name, getattr(optax.contrib, name, None))
        expected = OFF | {k: p.default for k, p in (inspect.signature(theirs).parameters.items() if theirs else ())}
        expected |= SOURCES.get(name, {})
        for argument, parameter in inspect.signature(getattr(optimizers, name)).parameters.items():
            if parameter.default not in (parameter.empty, None, ()) and not callable(parameter.default):
                assert argument in expected, f"{name}: {argument} has no source here"
                assert parameter.default == expected[argument], f"{name}: {argument}"
