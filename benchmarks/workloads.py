"""The workloads: each a group of contestants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.contestants import (
    Compiling,
    Entry,
    Jitted,
    Memory,
    Stepper,
    check,
    jax_contestants,
    lineup,
    of_torch,
    rivals,
)
from benchmarks.data import CORES, Data, Shapes, affordable, gpt2
from benchmarks.guards import EAGER, JITTED, SCANNED, Way, guards
from benchmarks.recipes import RECIPES, ZOO, Recipe, scales
from benchmarks.timing import Against, Contestant, Steps

__all__ = ["WORKLOADS", "Setting", "Sweep", "Workload", "beside_optax", "sweeps"]


class Setting(NamedTuple):
    """How to measure.

    Attributes:
        executors: of gradtx.
        quick: small sizes and short bursts, to see that everything works.
    """

    executors: Sequence[str]
    quick: bool = False

    @property
    def threads(self) -> int:
        """Of torch and the floor: one for each core; one where times do not matter."""
        return 1 if self.quick else CORES

    @property
    def burst(self) -> float:
        """Seconds of steps in one measurement."""
        return 0.002 if self.quick else 0.03


class Workload(NamedTuple):
    """Something to measure contestants with.

    Attributes:
        about: one line.
        line_up: builds the contestants, by name; they have done the same work when it returns.
        unit: of the measurements: s, bytes, ratio (to optax), or cost (of Adam).
        slow: not among those that run when none is asked for.
        rounds: the most that make sense.
    """

    about: str
    line_up: Callable[[Setting], dict[str, Contestant]]
    unit: str = "s"
    slow: bool = False
    rounds: int = 1000


def _steps(
    recipe: Recipe, shapes: Shapes, small: Shapes, eager: bool = False, packed: bool = False
) -> Callable[[Setting], Any]:
    """A line-up of everybody; with the small shapes if it is to be quick; if packed, with what handing over takes."""

    def line_up(setting: Setting) -> dict[str, Contestant]:
        data = Data(small if setting.quick else shapes)
        everybody = lineup(recipe, data, setting.executors, setting.threads, eager, packed)
        if packed:
            everybody["handing over"] = _handing_over(data.shapes, _moments_packed)
        return {
            name: Steps(stepper, setting.burst, details=getattr(stepper, "details", None))
            for name, stepper in everybody.items()
        }

    return line_up


def _gpt2(setting: Setting) -> dict[str, Contestant]:
    """As many blocks as the memory has room for."""
    recipe, small = RECIPES["adam"], gpt2(2, 32, 500, 64)
    many = len(setting.executors) + 1 + len(rivals(recipe))
    blocks = next((n for n in range(12, 0, -1) if affordable(gpt2(n), many)), None)
    return _steps(recipe, small if blocks is None else gpt2(blocks), small)(setting)


def _apart(
    kind: Callable[[Entry, Data], Contestant], shapes: Shapes, small: Shapes, packed: bool = False
) -> Callable[[Setting], Any]:
    """A line-up of those who compile, for Adam."""

    def line_up(setting: Setting) -> dict[str, Contestant]:
        recipe, data = RECIPES["adam"], Data(small if setting.quick else shapes)
        entries = jax_contestants(recipe.gradtx, recipe.optax, setting.executors, packed)
        kind(entries["optax"], Data([(1,)])).measure()  # what only the first compilation of a process pays
        return {name: kind(entry, data) for name, entry in entries.items()}

    return line_up


def _moments_per_leaf(params: Any) -> Any:
    return [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]


def _moments_packed(params: Any) -> Any:
    return [jnp.zeros(sum(x.size for x in params.values())) for _ in range(2)]


def _handing_over(shapes: Shapes, moments: Callable[[Any], Any]) -> Jitted:
    """A step that does nothing: what the runtime itself asks for handing over parameters, gradients and moments."""

    def nothing(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        # Multiplied, so that JAX does not pass them by; XLA finds out that there is nothing to do.
        return jax.tree.map(lambda x: x * 1, (params, state))

    return Jitted(Entry(moments, nothing), Data(shapes), keep_unused=True)


def _empty(setting: Setting) -> dict[str, Contestant]:
    shapes = [(1024,)] * (10 if setting.quick else 1000)
    made = {
        "moments per leaf": _handing_over(shapes, _moments_per_leaf),
        "moments packed": _handing_over(shapes, _moments_packed),
    }
    return {name: Steps(stepper, setting.burst, details=stepper.details) for name, stepper in made.items()}


def _perceptron(setting: Setting) -> dict[str, Contestant]:
    """A training loop that is compiled as a whole; its floor is the same with plain SGD, written by hand."""
    layers, width, batch, length = 11, 32, 16, 10 if setting.quick else 500
    shapes = [(width, width), (width,)] * layers
    inputs = jax.random.normal(jax.random.key(0), (batch, width))
    recipe = RECIPES["adam"]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        leaves, x = list(params.values()), inputs
        for w, b in zip(leaves[::2], leaves[1::2], strict=True):
            x = x + jax.nn.relu(x @ w + jnp.broadcast_to(b, x.shape))
        return jnp.mean(jnp.square(x))

    def loop(entry: Entry, length: int) -> Entry:
        def steps(params: Any, _: Any, state: Any) -> tuple[Any, Any]:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, state = carry
                return entry.step(params, jax.grad(loss)(params), state), None

            return jax.lax.scan(step, (params, state), None, length)[0]

        return Entry(entry.init, steps, entry.context)

    def plain_sgd(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), state

    entries = jax_contestants(recipe.gradtx, recipe.optax, setting.executors)
    # Checked over three steps: over hundreds, training amplifies what rounds differently.
    data = Data(shapes)
    check({name: Jitted(loop(entry, 3), data) for name, entry in entries.items()}, data, warmup=[0])
    data = Data(shapes)
    entries["plain SGD by hand"] = Entry(lambda params: (), plain_sgd)
    made = {name: Jitted(loop(entry, length), data) for name, entry in entries.items()}
    return {name: Steps(stepper, setting.burst, length, stepper.details) for name, stepper in made.items()}


def beside_optax(recipes: Mapping[str, Recipe], shapes: Shapes, small: Shapes) -> Callable[[Setting], Any]:
    """A line-up of optimizers: each of gradtx's executors divided by optax, which has done the same work.

    Where torch has the optimizer, torch in its fastest way is divided by optax, too.
    """

    def line_up(setting: Setting) -> dict[str, Contestant]:
        found: dict[str, Contestant] = {}
        for optimizer, recipe in recipes.items():
            data = Data(small if setting.quick else shapes)
            steppers: dict[str, Stepper] = {
                name: Jitted(entry, data)
                for name, entry in jax_contestants(recipe.gradtx, recipe.optax, setting.executors).items()
            }
            ways = [name for name in rivals(recipe) if name.startswith("torch")]
            if ways:
                steppers["torch"] = of_torch(ways[-1], recipe, data, setting.threads)
            check(steppers, data, recipe.differing)
            made = {
                name: Steps(stepper, setting.burst, details=getattr(stepper, "details", None))
                for name, stepper in steppers.items()
            }
            theirs = made.pop("optax")
            found |= {
                f"{optimizer}, {name.removeprefix('gradtx ')}": Against(own, theirs) for name, own in made.items()
            }
        return found

    return line_up


def _guards(of: str, shapes: Shapes, small: Shapes, way: Way = JITTED) -> Workload:
    """The workload of wrappers around Adam of these leaves."""

    def line_up(setting: Setting) -> dict[str, Contestant]:
        return guards(small if setting.quick else shapes, setting.executors, setting.burst, setting.threads, way)

    about = f"wrappers around Adam beside Adam alone: {of}"
    return Workload(about, line_up, unit="cost", slow=True, rounds=9)


def _one(n: int) -> Shapes:
    return [(n,)]


WORKLOADS = {
    "one-leaf": Workload(
        "Adam, one leaf of 2**24 parameters: bandwidth", _steps(RECIPES["adam"], _one(2**24), _one(2**12))
    ),
    "128x100k": Workload(
        "Adam, 128 leaves of 100,000",
        _steps(RECIPES["adam"], [(100_000,)] * 128, [(1000,)] * 16, packed=True),
    ),
    "1000x1024": Workload(
        "Adam, 1000 leaves of 1024: what each leaf costs",
        _steps(RECIPES["adam"], [(1024,)] * 1000, [(64,)] * 20, packed=True),
    ),
    "gpt2": Workload("Adam, the 148 leaves of GPT-2 small, 124 M parameters", _gpt2, slow=True, rounds=11),
    "mlp-scan": Workload("Adam, a whole training step of 22 small leaves inside lax.scan", _perceptron),
    "clip-adamw": Workload(
        "clipping by the global norm and AdamW, one leaf of 2**24",
        _steps(RECIPES["clip-adamw"], _one(2**24), _one(2**12)),
    ),
    "amsgrad": Workload("AMSGrad, one leaf of 2**24", _steps(RECIPES["amsgrad"], _one(2**24), _one(2**12))),
    "nadam": Workload("Nadam, one leaf of 2**24", _steps(RECIPES["nadam"], _one(2**24), _one(2**12))),
    "zoo": Workload(
        "each optimizer of optax beside gradtx's chain of it: 4 matrices of 1024 by 1024, and a vector",
        beside_optax(ZOO, [*[(1024, 1024)] * 4, (1024,)], [(8, 4), (4,)]),
        unit="ratio",
        slow=True,
        rounds=9,
    ),
    "guards": _guards("one leaf of 2**22", _one(2**22), _one(2**12)),
    "guards-large": _guards("one leaf of 2**24, out of every cache", _one(2**24), _one(2**12)),
    "guards1000": _guards("1000 leaves of 1024", [(1024,)] * 1000, [(64,)] * 3),
    "guards-scan": _guards("22 small leaves in lax.scan", [(32, 32), (32,)] * 11, [(4,), (2,)], SCANNED),
    "guards-eager": _guards("4 small leaves without jit", [(32, 32), (32,), (32, 10), (10,)], [(4,), (2,)], EAGER),
    "eager": Workload(
        "Adam without jit, 4 leaves: dispatch",
        _steps(RECIPES["adam"], [(32, 32), (32,), (32, 10), (10,)], [(4,), (2,)], eager=True),
    ),
    "empty": Workload("nothing, for 1000 parameters, gradients and state: the runtime's own cost", _empty),
    "compile": Workload(
        "Adam, 1000 leaves of 1024: tracing and compiling",
        _apart(Compiling, [(1024,)] * 1000, [(64,)] * 5, packed=True),
        slow=True,
        rounds=3,
    ),
    "memory": Workload(
        "Adam, one leaf of 2**24: peak memory of a step by XLA's account",
        _apart(Memory, _one(2**24), _one(2**12)),
        unit="bytes",
        rounds=1,
    ),
}


class Sweep(NamedTuple):
    """Workloads along one axis.

    Attributes:
        axis: what its numbers count.
        about: what stays the same.
        points: by the number on the axis.
    """

    axis: str
    about: str
    points: Mapping[int, Workload]


def sweeps(setting: Setting) -> dict[str, Sweep]:
    """Over the number of leaves, of parameters, and of rules."""
    leaves = (1, 3, 10) if setting.quick else (1, 3, 10, 30, 100, 300, 1000, 3000)
    sizes = (1000, 10_000) if setting.quick else (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
    rules = (1, 2) if setting.quick else (1, 2, 4, 8, 16)
    length = 10**4 if setting.quick else 4 * 10**6
    adam = RECIPES["adam"]
    many = len(setting.executors) + 1 + len(rivals(adam))
    sizes = [n for n in sizes if affordable([(n,)], many)]

    def point(about: str, recipe: Recipe, shapes: Shapes, packed: bool = False) -> Workload:
        return Workload(about, _steps(recipe, shapes, shapes, packed=packed), rounds=9)

    return {
        "leaves": Sweep(
            "leaves", "Adam, leaves of 1024", {n: point(f"{n} leaves", adam, [(1024,)] * n, True) for n in leaves}
        ),
        "parameters": Sweep("parameters", "Adam, one leaf", {n: point(f"{n} parameters", adam, [(n,)]) for n in sizes}),
        "rules": Sweep(
            "rules in a chain",
            f"scale, one leaf of {length:,}",
            {n: point(f"{n} rules", scales(n), [(length,)]) for n in rules},
        ),
    }
