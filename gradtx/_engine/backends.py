"""Executors: ways to map one function over many leaves, and to sum over them.

An executor knows leaves and dtypes, and no rule by name. The reference hands each leaf to JAX; every other one gives
the same result, and is tested against it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from gradtx import native
from gradtx._core.numerics import Numbers, SumOver, in_order, reductions_of, stacked
from gradtx._engine.blocks import observed
from gradtx._engine.fuse import Fused
from gradtx._engine.local import run
from gradtx._engine.plan import Place
from gradtx._engine.small import SmallSums, after, alike, reduced
from gradtx._engine.turns import in_turn
from gradtx.native._leaves import map_leaves, sum_each, sum_leaves
from gradtx.native._views import as_array


class Executor(Protocol):
    """A way to run a function of one array over many leaves."""

    def map_leaves(
        self,
        fn: Fused,
        leaves: Sequence[tuple[jax.Array, ...]],
        shared: Sequence[jax.Array],
        local: Sequence[Numbers],
        aliases: Mapping[int, int],
        reduces: Sequence[Literal["sum", "norm"]] = (),
        when: jax.Array | None = None,
    ) -> tuple[Sequence[Sequence[jax.Array]], Sequence[Numbers]]:
        """``fn(*arrays, *scalars, *shared)`` for the arrays of each leaf and its own of each list of scalars.

        An array may be a ``View`` of a flat one; then the output in its place may be one too. The last outputs are not
        written but reduced over each leaf, as ``reduces`` says, to numbers that come behind. Where ``when`` is false
        nothing happens: an output that may be in the memory of an array is that, and all else is 0.
        """
        ...

    def numbers(
        self,
        fn: Callable[..., Sequence[jax.Array]],
        leaves: Sequence[tuple[jax.Array, ...]],
        reduces: Sequence[Literal["sum", "norm"]],
        vector: bool = True,
    ) -> Sequence[Numbers]:
        """The numbers of all results of a function of the arrays of each leaf, where nothing is written.

        ``vector``: whether vectors of them are wanted; where not, lists are as good.
        """
        ...

    @property
    def total(self) -> SumOver:
        """The sum of a function, of one array of each column, over all elements of all arrays, or of each row."""
        ...

    def total_when(self, when: jax.Array | None) -> SumOver:
        """The same, but 0 where a flag is false, at least where it ``takes_flags``."""
        ...

    @property
    def takes_flags(self) -> bool:
        """True if ``when`` costs less than a condition around the step."""
        ...

    @property
    def behind_trees(self) -> Executor:
        """The executor of a pass that goes on with arrays that a rule of whole trees makes, which XLA does."""
        ...


_SMALL_SUMS = SmallSums()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Reference:
    """Leaf by leaf, and the fusing is left to XLA."""

    @property
    def total(self) -> SumOver:
        return _SMALL_SUMS

    def total_when(self, when: jax.Array | None) -> SumOver:
        del when
        return self.total

    @property
    def takes_flags(self) -> bool:
        return False

    @property
    def behind_trees(self) -> Executor:
        return self

    def map_leaves(self, fn, leaves, shared, local, aliases, reduces=(), when=None):
        assert when is None
        operands = [(*map(as_array, arrays), *(x[i] for x in local), *shared) for i, arrays in enumerate(leaves)]
        if not reduces:
            return [_mapped(fn, xs, aliases) for xs in operands], []
        together = alike(fn, operands, reduces)
        small = {i for members, _ in together for i in members}
        if small:  # what is read together is read before the first of it is overwritten
            held = after([x for _, columns in together for x in columns], shared)
            first = len(operands[0]) - len(shared)
            operands = [(*xs[:first], *held) if i in small else xs for i, xs in enumerate(operands)]
        large = [None if i in small else observed(fn, xs, reduces, aliases) for i, xs in enumerate(operands)]
        rows = [results or run(fn, *xs) for results, xs in zip(large, operands, strict=True)]
        results, last = [row[: -len(reduces)] for row in rows], [[*row[-len(reduces) :]] for row in rows]
        numbers: list[tuple[list[int], Sequence[Numbers]]] = [*together]
        numbers += [([i], [[x] for x in last[i]]) for i, known in enumerate(large) if known]
        if rest := [i for i, known in enumerate(large) if not known and i not in small]:
            numbers.insert(0, (rest, reduced(reduces, [[last[i][k] for i in rest] for k in range(len(reduces))])))
        return results, _in_leaf_order(numbers)

    def numbers(self, fn, leaves, reduces, vector=True):
        if not vector:
            return reduced(reduces, [*zip(*(fn(*arrays) for arrays in leaves), strict=True)], vector)
        together = alike(fn, leaves, reduces)
        rest = sorted({*range(len(leaves))}.difference(*(members for members, _ in together)))
        others = [(rest, reductions_of(fn, [leaves[i] for i in rest], reduces, self.total))] if rest else []
        return _in_leaf_order([*others, *together])


def _mapped(fn: Fused, operands: Sequence[jax.Array], aliases: Mapping[int, int]) -> Sequence[jax.Array]:
    """The outputs of one leaf, in JAX."""
    return in_turn(fn, operands, aliases) or run(fn, *operands)


def _in_leaf_order(parts: Sequence[tuple[list[int], Sequence[Numbers]]]) -> Sequence[Numbers]:
    """The numbers of some leaves, of others, and so on, as those of all leaves."""
    if len(parts) == 1:
        ((_, columns),) = parts
        return columns
    place = {i: k for k, i in enumerate(itertools.chain(*(members for members, _ in parts)))}
    places = [place[i] for i in range(len(place))]
    joined = zip(*(columns for _, columns in parts), strict=True)
    return [in_order(jnp.concatenate([*map(stacked, column)]), places) for column in joined]


class _NativeSums(SumOver):
    def __init__(self, when: jax.Array | None = None):
        self.when = when

    def __call__(self, fn, *columns):
        return sum_leaves(fn, list(zip(*columns, strict=True)), when=self.when)

    def each(self, fn, *columns, local=()):
        return sum_each(fn, list(zip(*columns, strict=True)), local=local, when=self.when)

    def norms(self, xs, vector=False):
        del vector
        if any(x.dtype != jnp.float32 for x in xs) or not native.available():
            return None
        return map_leaves(lambda x: (x,), [(x,) for x in xs], reduces=["norm"])[1][0]


_NATIVE_SUMS = _NativeSums()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Native:
    """Many leaves in one call of the compiled kernel, wherever that can run."""

    @property
    def total(self) -> SumOver:
        return _NATIVE_SUMS

    def total_when(self, when: jax.Array | None) -> SumOver:
        return _NATIVE_SUMS if when is None else _NativeSums(when)

    @property
    def takes_flags(self) -> bool:
        return True

    @property
    def behind_trees(self) -> Executor:
        return REFERENCE

    def map_leaves(self, fn, leaves, shared, local, aliases, reduces=(), when=None):
        return map_leaves(fn, leaves, shared, local, aliases, reduces, when, otherwise=_mapped)

    def numbers(self, fn, leaves, reduces, vector=True):
        del vector
        return map_leaves(fn, leaves, reduces=reduces)[1]


REFERENCE, NATIVE = Reference(), Native()  # one of each: what is compiled for one serves every step


class _SurveyedSums(SumOver):
    def __init__(self, reasons: list[str | None]):
        self.reasons = reasons

    def of_arrays(self, fn, *columns):
        rows = dict.fromkeys(tuple((x.shape, x.dtype) for x in row) for row in zip(*columns, strict=True))
        self.reasons += [native.supports(fn, [jax.ShapeDtypeStruct(*aval) for aval in row]) for row in rows]
        return super().of_arrays(fn, *columns)


class Survey(Reference):
    """The reference, which notes of each function that it maps why the kernel would not: None if it would."""

    def __eq__(self, other: object) -> bool:
        return self is other  # each notes for itself

    def __hash__(self) -> int:
        return id(self)

    def __init__(self):
        self.reasons: list[str | None] = []

    @property
    def total(self) -> SumOver:
        return _SurveyedSums(self.reasons)

    def map_leaves(self, fn, leaves, shared, local, aliases, reduces=(), when=None):
        avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(as_array, leaves[0])]
        reason = native.supports(fn, avals, len(local) + len(shared))
        if reason is not None:
            names = [
                rule.title
                for rule, alone, own in fn.apart(avals)
                if native.supports(alone, own, len(alone.launch.rounded) + len(alone.coefficients[0])) is not None
            ]
            reason = f"{', '.join(dict.fromkeys(names))}: {reason}" if 0 < len(names) < len(fn.rules) else reason
        self.reasons.append(reason)
        return super().map_leaves(fn, leaves, shared, local, aliases, reduces)

    @property
    def behind_trees(self) -> Executor:
        self.reasons.append("XLA makes the directions")
        return REFERENCE

    @property
    def place(self) -> Place:
        """The place where all that was mapped would run."""
        if (elsewhere := _elsewhere()) is not None:
            return Place("in XLA", f"no kernel: {elsewhere}")
        reasons = list(dict.fromkeys(reason for reason in self.reasons if reason is not None))
        if not reasons:
            return Place("in the kernel")
        where = "in XLA" if None not in self.reasons else "in XLA and the kernel"
        return Place(where, f"not in the kernel: {'; '.join(reasons)}", exact=False)


Name = Literal["auto", "reference", "native"]

_chosen = jax.make_user_context("auto")  # part of the key of jit's cache, so that another choice compiles anew


def executor(name: Name) -> Any:
    """The executor of chains in this context: ``with executor("reference"): ...``.

    Results are the same up to rounding, a few ulp a step, and up to the least normal number (1.2e-38 in float32), below
    which XLA's CPU code takes numbers for 0, and the kernel only where it calculates. What jit has compiled under
    another choice is compiled anew.
    For the whole process use ``set_executor``.

    Args:
        name: "reference": leaf by leaf in JAX. "native": many leaves in one call of the compiled kernel; where it
            cannot run (other devices, several devices, derivatives, ``vmap``, functions it does not know), it is the
            reference by itself. "auto", the default: native where the kernel was built and the default backend is the
            CPU, else the reference. ``gradtx.native.available()`` says whether the kernel was built, and why not.

    Raises:
        ValueError: for another name.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.adam(0.1), jnp.array([1.0, -2.0])
    >>> with gradtx.executor("reference"):
    ...     print(gradtx.step(tx, params, params, tx.init(params))[0])
    [ 0.9 -1.9]
    """
    return _chosen(_known(name))


def set_executor(name: Name) -> None:
    """Set the executor of chains in this process, where no ``with executor(...)`` says otherwise; at first "auto".

    Args:
        name: as for ``executor``.

    Raises:
        ValueError: for another name.

    >>> import gradtx
    >>> gradtx.set_executor("auto")
    """
    _chosen.set_global(_known(name))


def _known(name: str) -> str:
    if name not in ("auto", "reference", "native"):
        raise ValueError(f"gradtx: executor must be 'auto', 'reference' or 'native', found {name!r}")
    return name


def current(traced: bool) -> Executor:
    """The executor that is chosen here, for arrays that are traced or have values."""
    name = _chosen.value
    if name == "auto":  # what the kernel runs is compiled first, which only a trace does once for many steps
        name = "native" if traced and _elsewhere() is None else "reference"
    return NATIVE if name == "native" else REFERENCE


def _elsewhere() -> str | None:
    """The reason why compiled steps do not run in the kernel here; None if they do."""
    if _chosen.value == "reference":
        return "the executor is 'reference'"
    if not native.available():
        return str(native.available())
    return None if jax.default_backend() == "cpu" else f"the device is a {jax.default_backend().upper()}"
