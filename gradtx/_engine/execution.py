"""How plans run. Executors know leaves, dtypes and passes, and no rule by name.

An executor is a way to map one function over many leaves. The reference hands each leaf to JAX; every other one gives
the same result, and is tested against it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gradtx import native
from gradtx._core import methods
from gradtx._core.contract import AbstractRule, Trees
from gradtx._core.dtypes import promoted
from gradtx._core.numerics import Numbers, SumOver, added, in_order, real_dtype, sum_over, widest
from gradtx._core.signal import Signal
from gradtx._engine.plan import Batch, Leaf, Pass, Place, Plan
from gradtx.native._leaves import map_leaves, sum_each, sum_leaves
from gradtx.native._parts import as_array

Coefficients = dict[str, jax.Array]


class Resting(NamedTuple):
    """A leaf that no rule for arrays acts on, or that a rule freezes: it may be no number, and have no gradient.

    Attributes:
        gradient: as it came in, None, float0, or an array of whatever dtype; or what a rule that maps whole trees made.
        frozen: whether a rule freezes it.
        computed: whether there are zeros in its place, as rules that act on it before it is frozen keep slots for it.
        members: per rule, whether the rule sees it as it is (see ``AbstractRule.takes_anything``).
    """

    gradient: Any
    frozen: bool
    computed: bool
    members: tuple[bool, ...]


class Work(NamedTuple):
    """One step of a chain, ready to run.

    Attributes:
        plan: how.
        coefficients: per rule, what its ``tick`` gave, by the rules that act on a leaf (``Leaf.members``).
        updates: per leaf, the incoming updates as they are stored.
        slots: per rule, {slot: one array (or ``Part`` of a flat one) per leaf, None where it does not act}; for a rule
            that maps whole trees, its state.
        params: per leaf, the parameters as they are stored, or None.
        treedef: the structure of the updates.
        extra: the extra arguments of ``update``, for rules that map whole trees.
        resting: the leaves that rest, by position; rules that map whole trees write what they make of them there.
        count: steps taken before this one, for rules that map whole trees.
    """

    plan: Plan
    coefficients: Mapping[tuple[bool, ...], Sequence[Coefficients]]
    updates: Sequence[jax.Array]
    slots: Sequence[Any]
    params: Sequence[jax.Array] | None
    treedef: Any
    extra: dict[str, Any]
    resting: dict[int, Resting]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as states do


class Result(NamedTuple):
    """What a step gives: per leaf the update, or the parameter after it, and the slots as they came, one step on."""

    leaves: list[jax.Array]
    slots: list[Any]


class Executor(Protocol):
    """A way to run a function of one array over many leaves."""

    def map_leaves(
        self,
        fn: Fused,
        leaves: Sequence[tuple[jax.Array, ...]],
        shared: Sequence[jax.Array],
        local: Sequence[Numbers],
        aliases: Mapping[int, int],
    ) -> Sequence[Sequence[jax.Array]]:
        """``fn(*arrays, *scalars, *shared)`` for the arrays of each leaf and its own of each list of scalars.

        An array may be a ``Part`` of a flat one; then the output in its place may be one too.
        """
        ...

    @property
    def total(self) -> SumOver:
        """The sum of a function, of one array of each column, over all elements of all arrays, or of each row."""
        ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class Reference:
    """Leaf by leaf, and the fusing is left to XLA."""

    @property
    def total(self) -> SumOver:
        return sum_over

    def map_leaves(self, fn, leaves, shared, local, aliases):
        return [_run(fn, *map(as_array, arrays), *(x[i] for x in local), *shared) for i, arrays in enumerate(leaves)]


class _NativeSums(SumOver):
    def __call__(self, fn, *columns):
        return sum_leaves(fn, list(zip(*columns, strict=True)))

    def each(self, fn, *columns, local=()):
        return sum_each(fn, list(zip(*columns, strict=True)), local=local)


_NATIVE_SUMS = _NativeSums()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Native:
    """Many leaves in one call of the compiled kernel, wherever that can run."""

    @property
    def total(self) -> SumOver:
        return _NATIVE_SUMS

    def map_leaves(self, fn, leaves, shared, local, aliases):
        return map_leaves(fn, leaves, shared, local, aliases)[0]


REFERENCE, NATIVE = Reference(), Native()  # one of each: what is compiled for one serves every step


class _SurveyedSums(SumOver):
    def __init__(self, reasons: list[str | None]):
        self.reasons = reasons

    def __call__(self, fn, *columns):
        rows = dict.fromkeys(tuple((x.shape, x.dtype) for x in row) for row in zip(*columns, strict=True))
        self.reasons += [native.supports(fn, [jax.ShapeDtypeStruct(*aval) for aval in row]) for row in rows]
        return super().__call__(fn, *columns)


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

    def map_leaves(self, fn, leaves, shared, local, aliases):
        avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in map(as_array, leaves[0])]
        reason = native.supports(fn, avals, len(local) + len(shared))
        if reason is not None:
            names = [
                rule.name or rule.label
                for rule, alone, own in fn.apart(avals)
                if native.supports(alone, own, len(alone.rules[0][2])) is not None
            ]
            reason = f"{', '.join(dict.fromkeys(names))}: {reason}" if 0 < len(names) < len(fn.rules) else reason
        self.reasons.append(reason)
        return super().map_leaves(fn, leaves, shared, local, aliases)

    @property
    def place(self) -> Place:
        """Where all that was mapped would run."""
        if (elsewhere := _elsewhere()) is not None:
            return Place("in XLA", f"no kernel: {elsewhere}")
        reasons = list(dict.fromkeys(reason for reason in self.reasons if reason is not None))
        if not reasons:
            return Place("in the kernel")
        where = "in XLA" if None not in self.reasons else "in XLA and the kernel"
        return Place(where, f"not in the kernel: {'; '.join(reasons)}", exact=False)


@functools.partial(jax.jit, static_argnums=0)
def _run(fn: Fused, *operands: jax.Array) -> tuple[jax.Array, ...]:
    """Traced once for all leaves of one kind, and inlined by XLA."""
    return fn(*operands)


Name = Literal["auto", "reference", "native"]

_chosen = jax.make_user_context("auto")  # part of the key of jit's cache, so that another choice compiles anew


def executor(name: Name) -> Any:
    """How chains run in this context: ``with executor("reference"): ...``.

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
    """How chains run in this process, wherever no ``with executor(...)`` says otherwise; at first "auto".

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


@dataclass(frozen=True)
class Fused:
    """The rules of one pass as one function of one array: lanes, parameter, slots and coefficients, in that order.

    A value, equal for what computes the same. ``finish`` is what the last pass does with the direction: nothing, cast
    it to the dtype of the updates, or take the step and give the parameter.

    Attributes:
        rules: those that act, each with the names of its slots and of its coefficients, and the dtypes of its slots.
        leaf: what is known of the leaf.
        accumulated, second_moment: which lanes come in beside the direction.
        lanes_out: whether the gradient and the second moment go out.
        reads_param: whether the parameter comes in.
        finish: see above.
    """

    rules: tuple[tuple[AbstractRule, tuple[str, ...], tuple[str, ...], tuple[jnp.dtype, ...]], ...]
    leaf: Leaf
    accumulated: bool
    second_moment: bool
    lanes_out: tuple[bool, bool]
    reads_param: bool
    finish: Literal["update", "param"] | None

    def __call__(self, *operands: jax.Array) -> tuple[jax.Array, ...]:
        rest = iter(operands)
        dtype = self.leaf.dtype
        u = next(rest).astype(dtype)
        g = next(rest) if self.accumulated else u
        v = next(rest) if self.second_moment else None
        stored = next(rest) if self.reads_param else None
        param = None if stored is None else _widen(stored, dtype)
        slots = [{slot: _widen(next(rest), real_dtype(dtype)) for slot in names} for _, names, _, _ in self.rules]
        signal, in_gradient_phase = Signal(g, u, v), not self.accumulated
        out: list[jax.Array] = []
        for (rule, names, coefficients, kept), own in zip(self.rules, slots, strict=True):
            c = {name: next(rest) for name in coefficients}
            signal, after = methods.applied(rule, signal, own, param if rule.needs_params else None, c)
            in_gradient_phase = in_gradient_phase and not rule.accumulates
            if in_gradient_phase:
                signal = signal._replace(gradient=signal.direction)
            out += [after[slot].astype(d) for slot, d in zip(names, kept, strict=True)]
        return (*self._finished(signal, stored), *out)

    def apart(self, avals: Sequence[Any]) -> Iterator[tuple[AbstractRule, Fused, list[Any]]]:
        """Each rule, the function of it alone, and what its arrays are like."""
        before = 1 + self.accumulated + self.second_moment + self.reads_param
        u = jax.ShapeDtypeStruct(avals[0].shape, self.leaf.dtype)
        v = jax.ShapeDtypeStruct(avals[0].shape, real_dtype(self.leaf.dtype))
        rest = iter(avals[before:])
        for one in self.rules:
            rule, slots, _, _ = one
            held = [next(rest) for _ in slots]
            needs = rule.second_moment in ("edits", "uses")
            lanes = {"accumulated": True, "second_moment": needs, "lanes_out": (False, False)}
            alone = replace(self, rules=(one,), finish="update", **lanes)
            own = [u, u, *([v] if needs else []), *avals[before - self.reads_param : before], *held]
            yield rule, alone, own

    def _finished(self, signal: Signal, stored: jax.Array | None) -> list[jax.Array]:
        if self.finish is None:
            others = zip((signal.gradient, signal.second_moment), self.lanes_out, strict=True)
            return [signal.direction, *(lane for lane, goes in others if goes)]
        update = signal.direction.astype(self.leaf.update)
        if self.finish == "update" or stored is None:
            return [update]
        return [added(stored, update)]


def survey(work: Work) -> list[Place]:
    """Where each pass of a step would run; to be traced."""
    plan, after = work.plan, _before(work)
    lanes: list[tuple[jax.Array, ...]] = [(u,) for u in work.updates]
    places = []
    for k, part in enumerate(plan.passes):
        executor, r = Survey(), part.rules.start
        measured = _measure(r, lanes, work, executor) if part.measures else None
        for batch in plan.batches:
            if part.acts_on(batch.leaf) and not part.whole:
                _map_batch(k, batch, lanes, measured, after, work, executor)
            elif part.acts_on(batch.leaf):  # as if it gave what it got
                freezes = plan.rules[r].accumulates and not plan.accumulated(batch.leaf, r)
                for i in batch.leaves:
                    u = lanes[i][0].astype(batch.leaf.dtype)
                    lanes[i] = (u, *([u] if freezes else []), *lanes[i][1:])
        places.append(executor.place if executor.reasons else Place())
    return places


def execute(work: Work, executor: Executor) -> Result:
    """Run a plan, pass by pass."""
    plan = work.plan
    after = _before(work)
    lanes: list[tuple[jax.Array, ...]] = [(u,) for u in work.updates]
    for k, part in enumerate(plan.passes):
        if part.whole:
            _map_tree(part.rules.start, lanes, after, work, executor)
            continue
        measured = _measure(part.rules.start, lanes, work, executor) if part.measures else None
        for batch in plan.batches:
            if part.acts_on(batch.leaf):
                _map_batch(k, batch, lanes, measured, after, work, executor)
    for batch in plan.batches:
        k = plan.last_pass(batch.leaf)
        if plan.passes[k].whole if k is not None else plan.applies:
            _finish(batch, lanes, after, work, executor)
    return after


def _before(work: Work) -> Result:
    """What is to be changed, as it came."""
    slots = zip(work.plan.rules, work.slots, strict=True)
    return Result(
        list(work.updates),
        [own if rule.whole else {slot: list(xs) for slot, xs in own.items()} for rule, own in slots],
    )


class Measured(NamedTuple):
    """What a rule measures: numbers, or several by name, and the place of each leaf's among them."""

    numbers: Numbers | dict[str, Numbers]
    places: dict[int, int]


def _measure(r: int, lanes: list[tuple[jax.Array, ...]], work: Work, executor: Executor) -> Measured | None:
    """What a rule measures of the leaves that it acts on, if there are any."""
    rule = work.plan.rules[r]
    acts = [(i, batch.leaf) for batch in work.plan.batches if batch.leaf.members[r] for i in batch.leaves]
    seen = {i: _seen(r, i, leaf, lanes[i], work) for i, leaf in sorted(acts, key=lambda one: one[0])}
    if not seen:
        return None
    if rule.scope == "leaf":
        numbers = _measured(rule, executor, [[leaf] for leaf in seen.values()])
        return Measured(numbers, {i: place for place, i in enumerate(seen)})
    return Measured(_measured(rule, executor, [list(seen.values())]), dict.fromkeys(seen, 0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(rule: AbstractRule, executor: Executor, groups: list[list[dict[str, jax.Array]]]) -> Any:
    """Outside of ``jit`` compiled once: a loop that each call makes anew would be compiled anew."""
    return methods.measured(
        rule, [[methods.to_measure(rule, lanes) for lanes in group] for group in groups], executor.total
    )


def _seen(r: int, i: int, leaf: Leaf, lanes: tuple[jax.Array, ...], work: Work) -> dict[str, jax.Array]:
    """The lanes of a leaf that a measurement reads."""
    direction = lanes[0].astype(leaf.dtype)
    found: dict[str, Any] = {"direction": direction, "gradient": direction}
    if work.plan.accumulated(leaf, r):
        found["gradient"] = lanes[1]
    if work.plan.second_moment(leaf, r):
        found["second_moment"] = lanes[-1]
    if work.params is not None:
        found["param"] = _widen(work.params[i], leaf.dtype)
    return {lane: x for lane, x in found.items() if lane in work.plan.rules[r].reads}


def _map_batch(
    k: int,
    batch: Batch,
    lanes: list[tuple[jax.Array, ...]],
    measured: Measured | None,
    after: Result,
    work: Work,
    executor: Executor,
) -> None:
    """One pass over one batch: writes lanes, or the result, and slots."""
    plan, leaf, part = work.plan, batch.leaf, work.plan.passes[k]
    ours = [r for r in part.rules if leaf.members[r]]
    shared, local = _coefficients(part, ours, batch, measured, work)
    finish: Any = ("param" if plan.applies else "update") if plan.last_pass(leaf) == k else None
    fn = Fused(
        tuple(
            (plan.rules[r], tuple(after.slots[r]), tuple(own), leaf.slots[r])
            for r, own in zip(ours, shared if local is None else [local, *shared], strict=True)
        ),
        leaf,
        accumulated := plan.accumulated(leaf, part.rules.start),
        second_moment := plan.second_moment(leaf, part.rules.start),
        (plan.accumulated(leaf, part.rules.stop), plan.second_moment(leaf, part.rules.stop)),
        reads_param := work.params is not None and (finish == "param" or any(plan.rules[r].needs_params for r in ours)),
        finish,
    )
    in_place = {}
    before = 1 + accumulated + second_moment + reads_param
    results = 1 if finish else 1 + sum(fn.lanes_out)
    if finish == "param":
        in_place[before - 1] = 0
    elif any(plan.passes[j].acts_on(leaf) for j in range(k)) and (finish is None or leaf.update == leaf.dtype):
        in_place[0] = 0  # the direction is a temporary of ours
    slots = [(r, slot) for r in ours for slot in after.slots[r]]
    in_place |= {before + j: results + j for j in range(len(slots))}
    arrays = [
        (*lanes[i], *([work.params[i]] if work.params is not None and reads_param else []),
         *(after.slots[r][slot][i] for r, slot in slots))
        for i in batch.leaves
    ]  # fmt: skip
    mapped = executor.map_leaves(
        fn,
        arrays,
        [x for own in shared for x in own.values()],
        list(local.values()) if local else [],
        in_place,
    )
    for i, out in zip(batch.leaves, mapped, strict=True):
        if finish is None:
            lanes[i] = tuple(out[:results])
        else:
            after.leaves[i] = out[0]
        for (r, slot), x in zip(slots, out[results:], strict=True):
            after.slots[r][slot][i] = x


def _coefficients(
    part: Pass, ours: list[int], batch: Batch, measured: Measured | None, work: Work
) -> tuple[list[Coefficients], Mapping[str, Numbers] | None]:
    """Those of each rule that are the same for the batch, and those of the first, for each leaf, where they differ."""
    dtype = real_dtype(batch.leaf.dtype)
    shared = [_cast(work.coefficients[batch.leaf.members][r], dtype) for r in ours]
    if measured is None or ours[0] != part.rules.start:
        return shared, None
    rule, (numbers, places) = work.plan.rules[ours[0]], measured
    columns = numbers if isinstance(numbers, dict) else {"": numbers}
    # A norm over leaves of two widths may be none of the narrow.
    wide = promoted(dtype, *(x[0].dtype for x in columns.values()))
    own = _cast(shared[0], wide)

    def settled(found: Coefficients) -> Coefficients:
        return _settled(rule, wide, dtype, own, found if isinstance(numbers, dict) else found[""])

    if rule.scope == "tree":
        return [settled({name: x[0] for name, x in columns.items()}), *shared[1:]], None
    order = [places[i] for i in batch.leaves]
    if not any(isinstance(x, list) for x in columns.values()):
        return shared[1:], jax.vmap(settled)({name: in_order(x, order) for name, x in columns.items()})
    each = [settled({name: x[i] for name, x in columns.items()}) for i in order]
    return shared[1:], {name: [one[name] for one in each] for name in each[0]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _settled(rule: AbstractRule, wide: jnp.dtype, dtype: jnp.dtype, own: Coefficients, found: Any) -> Coefficients:
    """Traced once for all leaves, and outside of ``jit`` compiled once for all steps."""
    return _cast(methods.settled(rule, own, jax.tree.map(lambda x: x.astype(wide), found)), dtype)


def _finish(batch: Batch, lanes: list[tuple[jax.Array, ...]], after: Result, work: Work, executor: Executor) -> None:
    """What no pass has done for a batch: cast the direction, or take the step."""
    if work.params is None or not work.plan.applies:
        for i in batch.leaves:
            after.leaves[i] = lanes[i][0].astype(batch.leaf.update)
        return
    fn = Fused((), batch.leaf, False, False, (False, False), True, "param")
    mapped = executor.map_leaves(fn, [(lanes[i][0], work.params[i]) for i in batch.leaves], [], [], {1: 0})
    for i, (x,) in zip(batch.leaves, mapped, strict=True):
        after.leaves[i] = x


def _map_tree(r: int, lanes: list[tuple[jax.Array, ...]], after: Result, work: Work, executor: Executor) -> None:
    """A rule that maps whole trees, which have None where it does not act."""
    plan, rule = work.plan, work.plan.rules[r]
    acts = {i: batch.leaf for batch in plan.batches if batch.leaf.members[r] for i in batch.leaves}
    as_it_is = {i: rests.gradient for i, rests in work.resting.items() if rests.members[r]}
    coefficients = next((own[r] for members, own in work.coefficients.items() if members[r]), {})
    if rule.hyperparameters() and not acts:
        return

    def tree(leaves: Mapping[int, Any]) -> Any:
        return work.treedef.unflatten([leaves.get(i) for i in range(len(lanes))])

    directions = {i: lanes[i][0].astype(leaf.dtype) for i, leaf in acts.items()}
    frozen = {i: plan.accumulated(leaf, r) for i, leaf in acts.items()}
    params = None
    if work.params is not None:
        params = {i: _widen(work.params[i], real_dtype(leaf.dtype)) for i, leaf in acts.items()}
        params = tree(params | {i: work.params[i] for i in as_it_is})
    incoming = tree({i: work.updates[i].astype(leaf.dtype) for i, leaf in acts.items()} | as_it_is)
    gradient = tree({i: lanes[i][1] if frozen[i] else directions[i] for i in acts} | as_it_is)
    lanes_in = (incoming, gradient, tree(directions | as_it_is))
    trees = Trees(*lanes_in, params, work.extra, work.count, executor, coefficients)
    apply = _mapped if rule.pure else _map_trees
    updates, after.slots[r] = apply(rule, trees, after.slots[r])
    for i, u in enumerate(work.treedef.flatten_up_to(updates)):
        if i in as_it_is:
            work.resting[i] = work.resting[i]._replace(gradient=u)
        elif i in acts:
            freezes = rule.accumulates and not frozen[i]
            lanes[i] = (u.astype(acts[i].dtype), *([directions[i]] if freezes else []), *lanes[i][1:])


def _map_trees(rule: AbstractRule, trees: Trees, state: Any) -> tuple[Any, Any]:
    return methods.check_tree(rule, rule.apply_tree(trees, state), trees.direction)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    rule: AbstractRule, treedef: Any, places: tuple[int, ...], distinct: list[Any], state: Any
) -> tuple[Any, Any]:
    return _map_trees(rule, treedef.unflatten([distinct[place] for place in places]), state)


def _mapped(rule: AbstractRule, trees: Trees, state: Any) -> tuple[Any, Any]:
    """A pure rule outside of ``jit`` compiled once; it reads no extra arguments. One array stays one in all trees."""
    leaves, treedef = jax.tree.flatten(trees._replace(extra={}))
    distinct = {id(x): x for x in leaves}
    place = {key: i for i, key in enumerate(distinct)}
    return _compiled(rule, treedef, tuple(place[id(x)] for x in leaves), list(distinct.values()), state)


def _widen(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.astype(widest(x.dtype, dtype))


def _cast(coefficients: Coefficients, dtype: jnp.dtype) -> Coefficients:
    return {name: value.astype(dtype) for name, value in coefficients.items()}
