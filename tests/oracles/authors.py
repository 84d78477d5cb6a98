"""Run optimizers of timm and of their authors' own packages, in float64, and store where they go.

Run from the root of the repository, with torch 2.13, timm 1.0.29, prodigyopt 1.1.2, schedulefree 1.4.1,
galore-torch 1.0, dadaptation 3.2, pytorch-optimizer 4.1.0, lion-pytorch 0.2.5, adam-atan2-pytorch 0.4.1, heavyball
3.2.1 and transformers 5.18.0 installed; of the packages that want others their optimizers alone are imported::

    python -m tests.oracles.authors          # or with --keep: those that are not stored yet

galore-torch takes its decompositions in float32, whatever the gradients are: here in float64, so that all else shows.

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
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from .cases import PROBLEMS, SCHEDULES, STEPS, flat

STORED = Path(__file__).parent / "authors.npz"
PROBLEM = [PROBLEMS["stochastic"], PROBLEMS["matrices"]]
PACKAGES = (
    *("torch", "timm", "prodigyopt", "schedulefree", "galore-torch", "dadaptation", "pytorch-optimizer"),
    *("lion-pytorch", "adam-atan2-pytorch", "heavyball", "transformers"),
)

Make = Callable[[list[Any], float], Any]
"""An optimizer of torch, given parameters and the learning rate at the start."""


def part(package: str, module: str, name: str) -> Any:
    """A class in a module of a package, of which nothing is imported that the module does not ask for."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for inner in ("", *(f".{part}" for part in module.split(".")[:-1])):
            sys.modules[package + inner] = types.ModuleType(package + inner)
            sys.modules[package + inner].__path__ = [str(folder.joinpath(*inner.split(".")))]
    return getattr(importlib.import_module(f"{package}.{module}"), name)


def timm(module: str, name: str) -> Any:
    return part("timm", f"optim.{module}", name)


def projected(params: list[Any], lr: float, gap: int, **arguments: Any) -> Any:
    """GaLore's AdamW, of which the matrices are projected to two directions."""
    groups = [
        {"params": [p for p in params if p.ndim == 2], "rank": 2, "update_proj_gap": gap, "scale": 0.25},
        {"params": [p for p in params if p.ndim != 2]},
    ]
    groups[0]["proj_type"] = "std"
    asked_for: Any = types.ModuleType("transformers.utils.versions")
    asked_for.require_version = lambda *_: None
    stubs = {name: types.ModuleType(name) for name in ("transformers", "transformers.utils")}
    with mock.patch.dict(sys.modules, {**stubs, asked_for.__name__: asked_for}):
        adamw = part("galore_torch", "adamw", "AdamW")
    return adamw(groups, lr, **arguments, no_deprecation_warning=True)


def atan2(*arguments: Any, **options: Any) -> Any:
    return part("adam_atan2_pytorch", "adam_atan2", "AdamAtan2")(*arguments, **options)


def transformers(params: list[Any], lr: float) -> Any:
    """Its Adafactor, at rates that are given."""
    asked_for = {"trainer_pt_utils": ("LayerWiseDummyOptimizer", "LayerWiseDummyScheduler")}
    asked_for |= {"trainer_utils": ("SchedulerType",), "utils": ("logging",)}
    stubs = {f"transformers.{module}": mock.MagicMock(spec_set=names) for module, names in asked_for.items()}
    with mock.patch.dict(sys.modules, stubs):
        adafactor = part("transformers", "optimization", "Adafactor")
    return adafactor(params, lr, relative_step=False, weight_decay=0.1)


def heavyball(name: str, *arguments: Any, **options: Any) -> Any:
    """An optimizer of heavyball, not compiled, with slots in float64."""
    module = importlib.import_module("heavyball")
    module.utils.compile_mode = None
    return getattr(module, name)(*arguments, storage_dtype="float64", **options)


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
    "galore": (0.1, lambda p, lr: projected(p, lr, 1000)),
    "galore, turning": (0.1, lambda p, lr: projected(p, lr, 7, betas=(0.0, 0.9))),
    "dadapt_adam": (1.0, lambda p, lr: of("dadaptation", "DAdaptAdam")(p, lr, (0.9, 0.95), 1e-3, d0=0.02)),
    "shampoo": (  # of matrices; of a vector it takes a matrix too
        0.1,
        lambda p, lr: of("pytorch_optimizer", "Shampoo")(p[2:], lr, matrix_eps=1e-2),
    ),
    "lion_pytorch": (0.003, lambda p, lr: of("lion_pytorch", "Lion")(p, lr, (0.8, 0.95), weight_decay=0.1)),
    "adam_atan2": (0.03, lambda p, lr: atan2(p, lr, weight_decay=0.1)),
    "adam_atan2, cautious decay": (
        0.03,
        lambda p, lr: atan2(p, lr, weight_decay=0.3, cautious_wd=True, a=1.0, b=2.0),
    ),
    "adafactor": (0.1, transformers),
    "heavyball muon": (0.03, lambda p, lr: heavyball("Muon", p, lr)),
    "heavyball laprop": (0.03, lambda p, lr: heavyball("LaProp", p, lr, eps=1e-15, weight_decay=0.1)),
    "heavyball ademamix": (0.03, lambda p, lr: heavyball("AdEMAMix", p, lr, eps=1e-15)),
}
"""By name the learning rate at the start, and what makes the optimizer."""


CONSTANT = {"laprop"}
"""Run at a rate that stays: timm's LaProp weighs what it averages by the rate."""


def package(name: str) -> str:
    """Where the optimizer is from."""
    others = {"prodigy": "prodigyopt", "schedule-free": "schedulefree", "dadapt_adam": "dadaptation"}
    others |= {"galore": "galore-torch", "shampoo": "pytorch-optimizer", "heavyball": "heavyball"}
    others |= {"lion_pytorch": "lion-pytorch", "adam_atan2": "adam-atan2-pytorch", "adafactor": "transformers"}
    return next((package for start, package in others.items() if name.startswith(start)), "timm")


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
    before, single = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
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
        torch.Tensor.float = single


def main() -> None:
    """Write what all of them do."""
    stored = np.load(STORED) if "--keep" in sys.argv else {}
    found = {}
    for name in CASES:
        found[name] = stored[name] if name in stored else run(name)
        print(f"{name:20s} moved {np.ptp(found[name], axis=0).max():.3g}, last {np.round(found[name][-1, :4], 4)}")
    before = dict(line.split() for line in stored["__versions__"].tolist()) if stored else {}
    versions = [f"{name} {before.get(name) or version(name)}" for name in PACKAGES]
    np.savez_compressed(STORED, __versions__=np.array(versions), **found)


if __name__ == "__main__":
    main()
