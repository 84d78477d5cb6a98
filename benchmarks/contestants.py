"""Who is measured: gradtx with each of its executors, optax, torch in three ways, and the floor."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradtx
from benchmarks.data import CORES, Data
from benchmarks.floor import Floor, why_missing
from benchmarks.recipes import Recipe

__all__ = [
    "Compiling",
    "Memory",
    "Same",
    "Stepper",
    "check",
    "executors",
    "jax_contestants",
    "lineup",
    "of_torch",
    "rivals",
]

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(params, grads, state) -> (params, state)``"""

TOLERANCE = 1e-4
"""Of the parameters, relative to their norm, leaf by leaf: some float32 roundings."""

WARMUP = (0, 1, 0)
"""Which gradient each step of the check takes."""


class Stepper(Protocol):
    """A contestant that takes steps on the gradients of a ``Data``."""

    def use(self, which: int) -> None:
        """Take one of the gradients from now on."""
        ...

    def step(self) -> None:
        """One step, to its end."""
        ...

    def leaf(self, i: int) -> np.ndarray:
        """A leaf of the parameters as they are now."""
        ...


class Entry:
    """A library's way of taking a step in JAX.

    Args:
        init: parameters to state.
        step: a step.
        context: made and entered while the step is traced.
    """

    def __init__(self, init: Callable[[Any], Any], step: Step, context: Callable[[], Any] = contextlib.nullcontext):
        self.init, self.step, self.context = init, step, context


class Jitted:
    """Steps of a compiled function; parameters and state are donated to it, gradients are not.

    Args:
        entry: whose steps.
        data: what is trained.
        keep_unused: hand over also what the step does not look at.
    """

    def __init__(self, entry: Entry, data: Data, keep_unused: bool = False):
        jax.clear_caches()
        self._data = data
        self._params = data.params()
        self._state = jax.tree.map(jnp.copy, entry.init(self._params))  # some of optax's hold a buffer twice
        self._function = jax.jit(entry.step, donate_argnums=(0, 2), keep_unused=keep_unused)
        self.use(0)
        begin = time.perf_counter()
        with entry.context():
            self._compiled = self._function.lower(self._params, self._grads, self._state).compile()
        self.details = {"trace_and_compile_s": time.perf_counter() - begin}

    def use(self, which: int) -> None:
        self._grads = self._data.gradients[which]

    def step(self) -> None:
        self._params, self._state = self._compiled(self._params, self._grads, self._state)
        jax.block_until_ready((self._params, self._state))

    def leaf(self, i: int) -> np.ndarray:
        return np.asarray(list(self._params.values())[i])


class Eager:
    """Steps without ``jit``: every operation is dispatched by itself."""

    def __init__(self, entry: Entry, data: Data):
        self._entry, self._data = entry, data
        self._params, self._state = data.params(), entry.init(data.params())
        self.details: dict[str, float] = {}
        self.use(0)

    def use(self, which: int) -> None:
        self._grads = self._data.gradients[which]

    def step(self) -> None:
        with self._entry.context():
            self._params, self._state = self._entry.step(self._params, self._grads, self._state)
        jax.block_until_ready((self._params, self._state))

    def leaf(self, i: int) -> np.ndarray:
        return np.asarray(list(self._params.values())[i])


class Torch:
    """Steps of a torch optimizer.

    Args:
        recipe: its ``torch`` makes the optimizer; if it clips, the gradients are a copy, for torch clips in place.
        data: what is trained.
        flags: ``foreach`` and ``fused``.
        threads: that torch uses.
    """

    def __init__(self, recipe: Recipe, data: Data, flags: Mapping[str, bool], threads: int):
        import torch

        torch.set_num_threads(threads)
        assert recipe.torch is not None
        self._data, self._clip = data, recipe.clip
        self._params = [torch.from_numpy(x.copy()).requires_grad_() for x in data.start]
        self._optimizer = recipe.torch(self._params, flags)
        self._clip_by_norm = partial(torch.nn.utils.clip_grad_norm_, foreach=flags.get("foreach") or flags.get("fused"))
        self.details: dict[str, float] = {}
        self.use(0)

    def use(self, which: int) -> None:
        import torch

        for p, g in zip(self._params, self._data.gradients[which].values(), strict=True):
            own = torch.from_dlpack(g)
            p.grad = own.clone() if self._clip else own

    def step(self) -> None:
        if self._clip:
            self._clip_by_norm(self._params, self._clip)
        self._optimizer.step()

    def leaf(self, i: int) -> np.ndarray:
        return self._params[i].detach().numpy()


class Compiling:
    """Tracing and compiling a step from nothing."""

    def __init__(self, entry: Entry, data: Data):
        self._entry, self.details = entry, {}
        self._params = jax.eval_shape(data.params)
        self._state = jax.eval_shape(entry.init, self._params)

    def compile(self) -> jax.stages.Compiled:
        """The compiled step."""
        step = jax.jit(self._entry.step, donate_argnums=(0, 2))
        with self._entry.context():
            return step.lower(self._params, self._params, self._state).compile()

    def measure(self) -> float:
        """Seconds."""
        jax.clear_caches()
        gc.collect()
        begin = time.perf_counter()
        self.compile()
        return time.perf_counter() - begin


class Memory(Compiling):
    """The bytes of a compiled step at its peak, by XLA's account: arguments, temporaries, and outputs of their own."""

    def measure(self) -> float:
        """Bytes."""
        analysis = self.compile().memory_analysis()
        assert analysis is not None
        kinds = ("argument", "output", "alias", "temp")
        self.details = {f"{kind}_bytes": getattr(analysis, f"{kind}_size_in_bytes") for kind in kinds}
        argument, output, alias, temp = self.details.values()
        return argument + output - alias + temp


def executors(asked: Sequence[str] = ()) -> list[str]:
    """The executors that gradtx has here; of those asked for, if any are.

    Raises:
        ValueError: for one that it does not have.
    """
    usable = [name for name in ("reference", "native", "auto") if _usable(name)]
    for name in asked:
        if name not in usable:
            raise ValueError(f"gradtx has no executor {name!r} here; it has: {', '.join(usable)}")
    return list(asked) or [name for name in usable if name != "auto"]


def _usable(name: str) -> bool:
    if not hasattr(gradtx, "executor"):
        return name == "reference"
    try:
        with _executor(name):
            return True
    except (ImportError, RuntimeError, ValueError):
        return False


def _executor(name: str) -> Any:
    choose = getattr(gradtx, "executor", None)
    return contextlib.nullcontext() if choose is None else choose(name)


def jax_contestants(ours: Any, theirs: Any, names: Sequence[str], packed: bool = False) -> dict[str, Entry]:
    """gradtx with each of these executors, and with a packed state if that is asked for, and optax."""
    entries = {
        f"gradtx {name}": Entry(ours.init, partial(gradtx.step, ours), partial(_executor, name)) for name in names
    }

    if packed:
        tx = gradtx.packed(ours)
        entries["gradtx packed"] = Entry(tx.init, partial(gradtx.step, tx))

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        updates, state = theirs.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return entries | {"optax": Entry(theirs.init, step)}


def of_torch(name: str, recipe: Recipe, data: Data, threads: int = CORES) -> Torch:
    """torch in one of the ways that ``rivals`` names."""
    ways = {
        "torch for-loop": {"foreach": False, **({"fused": False} if recipe.fused else {})},
        "torch foreach": {"foreach": True},
        "torch fused": {"fused": True},
    }
    return Torch(recipe, data, ways[name], threads)


def rivals(recipe: Recipe) -> list[str]:
    """Contestants besides JAX: torch in the ways it has, and the floor, where they are there."""
    torch = importlib.util.find_spec("torch") is not None and recipe.torch is not None
    names = ["torch for-loop", "torch foreach", *["torch fused"] * recipe.fused] if torch else []
    return names + ["floor (C)"] * (recipe.learning_rate_of_floor is not None and why_missing() is None)


def lineup(
    recipe: Recipe, data: Data, names: Sequence[str], threads: int = CORES, eager: bool = False, packed: bool = False
) -> dict[str, Stepper]:
    """Everybody who can run a recipe, checked against one another and ready to be timed.

    Args:
        recipe: the optimizer.
        data: what is trained.
        names: of gradtx's executors.
        threads: of torch and the floor.
        eager: without ``jit``.
        packed: gradtx with a packed state too.
    """
    made: dict[str, Stepper] = {}
    for name, entry in jax_contestants(recipe.gradtx, recipe.optax, names, packed).items():
        made[name] = Eager(entry, data) if eager else Jitted(entry, data)
    for name in rivals(recipe):
        if name.startswith("torch"):
            made[name] = of_torch(name, recipe, data, threads)
        elif recipe.learning_rate_of_floor is not None:
            made[name] = Floor(data, recipe.learning_rate_of_floor, threads=threads)
    check(made, data, recipe.differing)
    return made


class Same(AssertionError):
    """Contestants that should have done the same work have not."""


def check(
    made: Mapping[str, Stepper], data: Data, differing: Mapping[str, Any] | None = None, warmup: Sequence[int] = WARMUP
) -> None:
    """Take the warm-up steps, and hold everybody's parameters against the first one's.

    Args:
        made: the contestants.
        data: what they train; afterwards it has one gradient left, and nothing to start from.
        differing: a library that has another algorithm under the same name, and the chain that is that algorithm.
        warmup: which gradient each step takes.

    Raises:
        Same: if they differ.
    """
    first = next(iter(made))
    standards: dict[str, Stepper] = {}
    for library, tx in (differing or {}).items():
        if any(name.startswith(library) for name in made):
            standards[library] = Jitted(Entry(tx.init, partial(gradtx.step, tx)), data)
    for which in warmup:
        for stepper in (*made.values(), *standards.values()):
            stepper.use(which)
            stepper.step()
    for name, stepper in made.items():
        standard = standards.get(name.split()[0], made[first])
        for i in range(len(data.shapes)):
            expected, found = standard.leaf(i), stepper.leaf(i)
            moved, off = np.linalg.norm(expected - data.start[i]), np.linalg.norm(found - expected)
            if not (moved > 0 and off <= TOLERANCE * np.linalg.norm(expected)):
                raise Same(f"after the warm-up, {name} is {off / moved:.1e} of the way off {first} in leaf {i}")
    for stepper in made.values():
        stepper.use(0)
    data.release()
