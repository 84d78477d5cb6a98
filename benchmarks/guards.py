"""Wrappers around Adam, in gradtx and in optax, beside Adam alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

import gradtx
from benchmarks.contestants import WARMUP, Eager, Entry, Jitted, Stepper, check, jax_contestants
from benchmarks.data import CORES, Data, Shapes
from benchmarks.floor import Floor, Kind, why_missing
from benchmarks.recipes import RATE, RECIPES
from benchmarks.timing import Against, Contestant, Steps

__all__ = ["ADAM_BYTES", "BARE", "EAGER", "GUARDS", "JITTED", "SCANNED", "Way", "guards"]

BARE = "adam"
"""The row that the others are divided by."""


ADAM_BYTES = 28.0
"""Parameter, gradient and two moments are read, and all but the gradient written, in float32."""


_IN_C = "floor (C)"


class Guard(NamedTuple):
    """A row of the table.

    Attributes:
        gradtx: the transformation.
        optax: its counterpart; None if optax has none.
        steps: how many steps one measurement is the mean of: those from one emission to the next.
        bytes: those that a step has to read and write of each parameter, in the mean.
        floor: how it is done in C; None if it is not.
    """

    gradtx: optax.GradientTransformation
    optax: optax.GradientTransformation | None = None
    steps: int = 1
    bytes: float = ADAM_BYTES
    floor: Kind | None = None


def _multi_steps(every: int) -> optax.GradientTransformation:
    return optax.MultiSteps(optax.adam(RATE), every).gradient_transformation()


def _labels(params: Any) -> Any:
    return dict.fromkeys(params, "all")


_ADAM, _HEAVY_BALL = gradtx.adam(RATE), gradtx.sgd(RATE, momentum=0.9)
_CLIPPED = RECIPES["clip-adamw"]
_READ = ADAM_BYTES + 4  # the gradient is read once more, before

GUARDS = {
    BARE: Guard(_ADAM, optax.adam(RATE), floor="adam"),
    "skip_nonfinite": Guard(
        gradtx.skip_nonfinite(_ADAM), optax.apply_if_finite(optax.adam(RATE), 10), bytes=_READ, floor="measured"
    ),
    "accumulate 4": Guard(
        gradtx.accumulate(_ADAM, 4), _multi_steps(4), 4, (3 * 12 + ADAM_BYTES + 8) / 4, floor="accumulated"
    ),
    "accumulate 1": Guard(gradtx.accumulate(_ADAM, 1), _multi_steps(1)),
    "loss_scale": Guard(gradtx.loss_scale(_ADAM), bytes=_READ),
    "partition": Guard(gradtx.partition({"": _ADAM}), optax.partition({"all": optax.adam(RATE)}, _labels)),
    "switch, first": Guard(gradtx.switch(10**6, _ADAM, _HEAVY_BALL)),
    "switch, then": Guard(gradtx.switch(0, _HEAVY_BALL, _ADAM)),
    "swats, Adam": Guard(gradtx.swats(RATE)),
    "monitor": Guard(gradtx.chain(_ADAM, gradtx.monitor())),
    "clip-adamw": Guard(_CLIPPED.gradtx, _CLIPPED.optax, bytes=_READ),
    "skip_nonfinite(clip-adamw)": Guard(
        gradtx.skip_nonfinite(_CLIPPED.gradtx), optax.apply_if_finite(_CLIPPED.optax, 10), bytes=_READ
    ),
    "slots in bfloat16": Guard(gradtx.chain(_ADAM, state_dtype="bfloat16"), bytes=ADAM_BYTES - 8, floor="bfloat16"),
}


class _Several:
    """Several steps as one."""

    def __init__(self, stepper: Stepper, steps: int):
        self._step, self._steps = stepper.step, steps

    def step(self) -> None:
        for _ in range(self._steps):
            self._step()


class Way(NamedTuple):
    """A way to take steps.

    Attributes:
        stepper: who takes them.
        steps: how many a call takes.
    """

    stepper: Callable[[Entry, Data], Stepper]
    steps: int = 1


_IN_A_LOOP = 20


def _scanned(entry: Entry, data: Data) -> Stepper:
    def steps(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            return entry.step(params, grads, state), None

        return jax.lax.scan(step, (params, state), None, _IN_A_LOOP)[0]

    return Jitted(Entry(entry.init, steps, entry.context), data)


JITTED, EAGER, SCANNED = Way(Jitted), Way(Eager), Way(_scanned, _IN_A_LOOP)


def guards(
    shapes: Shapes, executors: Sequence[str], burst: float, threads: int = CORES, way: Way = JITTED
) -> dict[str, Contestant]:
    """Each row divided by Adam alone, run by the same executor; optax and what is in C are divided by gradtx's Adam.

    Contestants of one row have done the same work. What is in C is there beside whole steps in ``jit`` alone.
    """
    made: dict[str, Contestant] = {}
    bare: dict[str, Contestant] = {}
    for row, guard in GUARDS.items():
        data = Data(shapes)
        entries = jax_contestants(guard.gradtx, guard.optax or guard.gradtx, executors)
        if guard.optax is None or way is EAGER:  # which compiles its conditions in every step, for a second each
            del entries["optax"]
        steppers: dict[str, Stepper] = {
            name.removeprefix("gradtx "): way.stepper(entry, data) for name, entry in entries.items()
        }
        if way is JITTED and guard.floor is not None and why_missing() is None:
            steppers[_IN_C] = Floor(data, RATE, threads=threads, kind=guard.floor, every=guard.steps)
        calls = -(-guard.steps // way.steps)  # of whole cycles
        check(steppers, data, warmup=WARMUP * calls)
        for name, stepper in steppers.items():
            details = getattr(stepper, "details", None)
            steps = Steps(_Several(stepper, calls), burst, calls * way.steps, details)
            if row == BARE and name in executors:
                bare[name] = steps
                continue
            made[f"{row}, {name}"] = Against(steps, bare[name if name in executors else executors[-1]])
    return made
