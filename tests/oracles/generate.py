"""Run the cases in the real frameworks, in float64, and store the parameters after each step.

Run from the root of the repository::

    python -m tests.oracles.generate --framework all

`run_torch` and `run_keras` run one case, so that a test can compare with whatever version is
installed. They import their framework themselves and leave its global settings as they found them.

What stays float32 although parameters and gradients are float64, with the largest change of a
trajectory that it causes, and what is done about it here:

- torch NAdam keeps `mu_product` in the default dtype: 1.3e-7 if that is float32. So it is float64
  here. The `step` tensors follow it too, but hold small integers, exact in float32 (`fused=True`
  always has them float32). All other scalars are Python floats. Nothing remains.
- torch ASGD keeps its step size and share in tensors that follow the default dtype too, but reads
  them as Python floats; float64 here. Muon iterates in bfloat16, whatever the parameters are, which
  changes it by hundredths: here its `bfloat16()` is replaced, so that all else can be compared.
- Keras takes no 64-bit dtype for the result of two, which makes the means of squares in Adafactor
  and a norm in Muon float32: 1e-7. Here it does.
- Keras keeps the learning rate in a variable of `floatx`: 3e-7 if that is float32, and nothing for
  learning rates that float32 holds exactly, so it is the only such scalar. `floatx` is float64
  here. `iterations` is an int32 and exact. Nothing remains with the JAX backend.
- The other Keras backends do not keep float64 even so. The torch backend makes float32 tensors of
  the thresholds in `clipnorm` and `global_clipnorm`: 9e-8. The NumPy backend computes in float32
  altogether: 1e-4. So Keras runs with JAX here or not at all.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from .cases import CASES, LR_NAME, PROBLEMS, Case, flat

HERE = Path(__file__).parent
Trajectory = NDArray[np.float64]

_TORCH_CLASS = {
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
    "rprop": "Rprop",
    "asgd": "ASGD",
    "muon": "Muon",
}
_KERAS_CLASS = {
    **_TORCH_CLASS,
    "nadam": "Nadam",
    "lion": "Lion",
    "lamb": "Lamb",
    "ftrl": "Ftrl",
    "schedule_free_adamw": "ScheduleFreeAdamW",
}


def _check_lr(case: Case, actual: float) -> None:
    """Fail if the framework starts from another learning rate than the case says."""
    if actual != case.lr:
        raise ValueError(f"{case.id}: the framework's learning rate is {actual}, not {case.lr}")


@contextmanager
def _torch_float64() -> Iterator[Any]:
    """Torch with float64 as default dtype, which NAdam's `mu_product` follows, and for Muon's bfloat16."""
    import torch

    before, bfloat16 = torch.get_default_dtype(), torch.Tensor.bfloat16
    torch.set_default_dtype(torch.float64)
    torch.Tensor.bfloat16 = lambda self: self.clone()
    try:
        yield torch
    finally:
        torch.set_default_dtype(before)
        torch.Tensor.bfloat16 = bfloat16


def run_torch(case: Case) -> Trajectory:
    """Parameters after each step of a torch case, as an array of steps x dims."""
    problem = PROBLEMS[case.problem]
    out = np.empty((case.steps, problem.x0.size * (1 + case.averages)))
    with _torch_float64() as torch:
        params = [torch.nn.Parameter(torch.tensor(x)) for x in problem.leaves(problem.x0)]
        optimizer = getattr(torch.optim, _TORCH_CLASS[case.optimizer])(params, **case.kwargs)
        (group,) = optimizer.param_groups
        _check_lr(case, group[LR_NAME["torch"]])
        x = problem.x0
        for k, lr in enumerate(case.learning_rates().tolist()):
            for param, grad in zip(params, problem.leaves(problem.grad(x, k)), strict=True):
                param.grad = torch.tensor(grad)
            if case.clip is not None:
                kind, threshold = case.clip
                clip = {
                    "value": torch.nn.utils.clip_grad_value_,
                    "norm": torch.nn.utils.clip_grad_norm_,
                }[kind]
                clip(params, threshold)
            group["lr"] = lr
            optimizer.step()
            x = flat([param.detach().numpy() for param in params])
            averages = [optimizer.state[param]["ax"].numpy() for param in params] if case.averages else []
            out[k] = flat([x, *averages])
    return out


@contextmanager
def keras_float64() -> Iterator[Any]:
    """Keras with float64 as `floatx`, which the learning-rate variable follows.

    JAX has to be told to allow float64 at all.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import jax
    import keras
    from keras.src.backend.common import dtypes

    if keras.config.backend() != "jax":
        raise RuntimeError(f"float64 needs the JAX backend of Keras, not {keras.config.backend()}")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax.enable_x64(True), mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64"):
            yield keras
    finally:
        keras.config.set_floatx(before)


def run_keras(case: Case) -> Trajectory:
    """Parameters after each step of a Keras case, as an array of steps x dims."""
    problem = PROBLEMS[case.problem]
    out = np.empty((case.steps, problem.x0.size * (1 + case.averages)))
    with keras_float64() as keras:
        variables = [keras.Variable(x, dtype="float64") for x in problem.leaves(problem.x0)]
        arguments = {name: value for name, value in case.kwargs.items() if name != "decay_mask"}
        optimizer = getattr(keras.optimizers, _KERAS_CLASS[case.optimizer])(**arguments)
        decays = re.compile(case.kwargs.get("decay_mask", ""))
        optimizer.exclude_from_weight_decay([v for i, v in enumerate(variables) if not decays.search(str(i))])
        optimizer.build(variables)
        _check_lr(case, float(optimizer.learning_rate))
        x = problem.x0
        for k, lr in enumerate(case.learning_rates().tolist()):
            grads = [keras.ops.convert_to_tensor(grad, "float64") for grad in problem.leaves(problem.grad(x, k))]
            optimizer.learning_rate = lr
            optimizer.apply(grads, variables)
            x = flat([keras.ops.convert_to_numpy(variable) for variable in variables])
            averages = optimizer._model_variables_moving_average if case.averages else []
            out[k] = flat([x, *map(keras.ops.convert_to_numpy, averages)])
    return out


RUNNERS: dict[str, Callable[[Case], Trajectory]] = {"torch": run_torch, "keras": run_keras}


def generate(framework: str, keep: bool = False) -> Path:
    """Run all cases of one framework, or keep those that are stored, and write its npz file."""
    path = HERE / f"{framework}.npz"
    stored = np.load(path) if keep else {}
    trajectories = {}
    for case in CASES:
        if case.framework == framework and case.id in stored:
            trajectories[case.id] = stored[case.id]
        elif case.framework == framework:
            trajectories[case.id] = x = RUNNERS[framework](case)
            if not np.abs(x).max() < 1e3:
                raise ValueError(f"{case.id} does not stay tame")
            print(f"{case.id:60s} last {np.round(x[-1], 4).tolist()}")
    packages = {"torch": ("torch", "numpy"), "keras": ("keras", "jax", "jaxlib", "numpy")}
    versions = [f"{name} {version(name)}" for name in packages[framework]]
    np.savez_compressed(path, __versions__=np.array(versions), **trajectories)
    print(f"{path.name}: {len(trajectories)} cases, {path.stat().st_size} bytes, {versions}")
    return path


def main() -> None:
    """Read the command line and generate."""
    parser = argparse.ArgumentParser(description="Write the golden trajectories.")
    parser.add_argument("--framework", choices=[*RUNNERS, "all"], default="all")
    parser.add_argument("--keep", action="store_true", help="run only cases that are not stored yet")
    arguments = parser.parse_args()
    for name in RUNNERS if arguments.framework == "all" else [arguments.framework]:
        generate(name, arguments.keep)


if __name__ == "__main__":
    main()
