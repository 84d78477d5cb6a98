"""Run optimizers of timm and of their authors' own packages, in float64, and store where they go.

Run from the root of the repository, with torch 2.13, timm 1.0.29, prodigyopt 1.1.2 and schedulefree 1.4.1
installed; of timm its optimizers alone are imported, since the rest of it wants torchvision::

    python -m tests.oracles.authors

The problems are the noisy one and that of two matrices together, at a falling rate or at one that stays.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import PROBLEMS, SCHEDULES, STEPS, flat

STORED = Path(__file__).parent / "authors.npz"
PROBLEM = [PROBLEMS["stochastic"], PROBLEMS["matrices"]]
PACKAGES = ("torch", "timm", "prodigyopt", "schedulefree")

Make = Callable[[list[Any], float], Any]
"""An optimizer of torch, given parameters and the learning rate at the start."""


def timm(module: str, name: str) -> Any:
    """A class of ``timm.optim``, of whose package nothing else is imported."""
    if "timm" not in sys.modules:
        spec = importlib.util.find_spec("timm")
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for package, path in (("timm", folder), ("timm.optim", folder / "optim")):
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(path)]
    return getattr(importlib.import_module(f"timm.optim.{module}"), name)


def of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


CASES: dict[str, tuple[float, Make]] = {
    "prodigy": (1.0, lambda p, lr: of("prodigyopt", "Prodigy")(p, lr, d0=0.01, weight_decay=0.1)),
    "prodigy, slow": (
        0.5,
        lambda p, lr: of("prodigyopt", "Prodigy")(p, lr, (0.8, 0.95), eps=1e-2, d0=0.1, d_coef=3.0),
    ),
    "schedule-free": (0.05, lambda p, lr: of("schedulefree", "AdamWScheduleFree")(p, lr, foreach=False)),
    "schedule-free sgd": (0.05, lambda p, lr: of("schedulefree", "SGDScheduleFree")(p, lr, foreach=False)),
    "adan": (0.03, lambda p, lr: timm("adan", "Adan")(p, lr, foreach=False)),
    "laprop": (0.03, lambda p, lr: timm("laprop", "LaProp")(p, lr)),
    "mars": (0.03, lambda p, lr: timm("mars", "Mars")(p, lr, (0.95, 0.99), optimize_1d=True)),
    "lamb": (0.03, lambda p, lr: timm("lamb", "Lamb")(p, lr, weight_decay=0.1, max_grad_norm=None)),
    "lars": (1.0, lambda p, lr: timm("lars", "Lars")(p, lr, 0.9, eps=0.0, always_adapt=True)),
    "novograd": (0.03, lambda p, lr: timm("nvnovograd", "NvNovoGrad")(p, lr, weight_decay=0.1)),
    "madgrad": (0.1, lambda p, lr: timm("madgrad", "MADGRAD")(p, lr, eps=1e-3)),
    "cautious adamw": (
        0.03,
        lambda p, lr: timm("adamw", "AdamWLegacy")(p, lr, weight_decay=0.1, caution=True, foreach=False),
    ),
    "lion": (0.003, lambda p, lr: timm("lion", "Lion")(p, lr, weight_decay=0.1, foreach=False)),
    "adabelief": (0.03, lambda p, lr: timm("adabelief", "AdaBelief")(p, lr, rectify=False, eps=1e-8)),
}
"""By name the learning rate at the start, and what makes the optimizer."""


CONSTANT = {"laprop"}
"""Run at a rate that stays: timm's LaProp weighs what it averages by the rate."""


def schedule(name: str) -> Callable[[Any], Any]:
    """The learning rate of a step."""
    lr, _ = CASES[name]
    return lambda count: lr * SCHEDULES["constant" if name in CONSTANT else "decaying"](count)


def leaves(points: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Of both problems, in order."""
    return [leaf for problem, x in zip(PROBLEM, points, strict=True) for leaf in problem.leaves(x)]


def start() -> list[NDArray[np.float64]]:
    """The parameters at the start."""
    return leaves([problem.x0 for problem in PROBLEM])


def noise() -> list[NDArray[np.float64]]:
    """Of each leaf the gradients at the origin, step by step; the parameters pull them by a tenth of themselves."""
    rows = [leaves([problem.grad(0 * problem.x0, k) for problem in PROBLEM]) for k in range(STEPS)]
    return [np.stack(leaf) for leaf in zip(*rows, strict=True)]


def run(name: str) -> NDArray[np.float64]:
    """The parameters after each step; of a schedule-free method those that the gradient is taken at."""
    import torch

    lr, make = CASES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        params = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in start()]
        optimizer, rows = make(params, lr), []
        if hasattr(optimizer, "train"):
            optimizer.train()
        for k, rate in enumerate(schedule(name)(np.arange(STEPS)).tolist()):
            for param, rows_of in zip(params, noise(), strict=True):
                param.grad = torch.tensor(rows_of[k]) + 0.1 * param.detach()
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            rows.append(flat([param.detach().numpy() for param in params]))
        return np.stack(rows)
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """Write what all of them do."""
    found = {}
    for name in CASES:
        found[name] = run(name)
        print(f"{name:20s} moved {np.ptp(found[name], axis=0).max():.3g}, last {np.round(found[name][-1, :4], 4)}")
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    np.savez_compressed(STORED, __versions__=np.array(versions), **found)


if __name__ == "__main__":
    main()
