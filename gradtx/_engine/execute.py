"""The run of a plan: pass by pass, from the arrays of each leaf before the step to those after it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._core import methods
from gradtx._core.codecs import decoded, is_encoded, parts, seeds
from gradtx._core.contract import AbstractRule, Trees
from gradtx._core.control import Once, either, kept
from gradtx._core.dtypes import promoted
from gradtx._core.mesh import check_types, left_to_compiler
from gradtx._core.numerics import Numbers, in_order, real_dtype, stacked
from gradtx._engine.backends import REFERENCE, Executor, Survey
from gradtx._engine.checks import check_on_device
from gradtx._engine.fuse import Fused, widened_to
from gradtx._engine.inputs import Inputs, Members
from gradtx._engine.plan import Batch, Key, Lane, Launch, Leaf, Place, Plan, Slot
from gradtx.native._views import View

Coefficients = dict[str, jax.Array]

Arrays = dict[Key, Any]
"""The arrays of one leaf by what they hold; slots may be ``View`` of flat ones."""


Factors = dict[int, Coefficients]
"""The coefficients of a rule that scales, of leaves by their positions; the same for all, where it has one factor."""


class Measured(NamedTuple):
    """The measurements of a rule.

    Attributes:
        numbers: one for each group of leaves, or several by name.
        places: of each leaf that was read the place among them.
        shows_finite: whether they show that what was read is finite; None: they never do.
    """

    numbers: Numbers | dict[str, Numbers]
    places: dict[int, int]
    shows_finite: jax.Array | None = None


class Work(NamedTuple):
    """One step of a chain, ready to run.

    Attributes:
        plan: how.
        inputs: the updates taken apart.
        coefficients: per rule, what its ``tick`` gave, by the rules that act on a leaf (``Leaf.members``).
        updates: per leaf, the incoming updates as they are stored.
        params: per leaf, the parameters as they are stored, or None.
        slots: per rule, {slot: one array (or ``View`` of a flat one) per leaf, None where it does not act}.
        trees: the states of rules that map whole trees, by the positions of the rules.
        extra: the extra arguments of ``update``, for rules that map whole trees.
        count: steps taken before this one, for rules that map whole trees.
        first: the measurement before the first pass, if it is known (see ``measured_first``).
        when: a flag. Where it is false the step does not happen: parameters and slots stay as they are, and updates
            are 0. No rule then maps whole trees. None for a step that happens.
    """

    plan: Plan
    inputs: Inputs
    coefficients: Mapping[Members, Sequence[Coefficients]]
    updates: Sequence[jax.Array]
    params: Sequence[jax.Array] | None
    slots: Sequence[Mapping[str, Sequence[Any]]]
    trees: Mapping[int, Any]
    extra: dict[str, Any]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as states do
    first: Measured | None = None
    when: jax.Array | None = None

    def after(self, result: Result) -> Work:
        """The same step on what another one has left."""
        params = result.leaves if self.plan.applies else self.params
        return self._replace(params=params, slots=result.slots, trees=result.trees)

    @property
    def is_packed(self) -> bool:
        """True if a slot stands in a flat array with others."""
        return any(isinstance(x, View) for slots in self.slots for column in slots.values() for x in column)


class Result(NamedTuple):
    """The results of a step: per leaf the update, or the parameter after it, and the slots and trees one step on."""

    leaves: list[Any]
    slots: list[dict[str, list[Any]]]
    trees: dict[int, Any]


def execute(work: Work, executor: Executor, observing: bool = True) -> Result:
    """The step; ``observing``: whether observers take numbers in it."""
    return _Run(work, executor, observing).result()


def unchanged(work: Work, like: Result) -> Result:
    """The result of a step that does not happen: parameters and state as they are; updates of 0, in the types given."""
    leaves = [None if x is None else jnp.zeros(x.shape, x.dtype) for x in like.leaves]
    slots = [{name: [*column] for name, column in slots.items()} for slots in work.slots]
    return Result([*(work.params or ())] if work.plan.applies else leaves, slots, dict(work.trees))


def measured_first(work: Work, executor: Executor) -> Measured | None:
    """The measurement before the first pass, which depends on nothing but what comes in; None if there is none."""
    passes = work.plan.passes
    measured = _Run(work, executor).measurement(0) if passes and passes[0].measures else None
    if measured is None:
        return None
    numbers = measured.numbers
    columns = numbers if isinstance(numbers, dict) else {"": numbers}
    vectors = {name: stacked(column) for name, column in columns.items()}
    shown = work.plan.rules[0].shows_finite(vectors if isinstance(numbers, dict) else vectors[""])
    return measured._replace(shows_finite=None if shown is None else jnp.all(shown))


def survey(work: Work) -> list[Place]:
    """The place where each pass of a step would run; to be traced."""
    places = []
    run = _Surveyed(work, Survey())
    for k, one in enumerate(work.plan.passes):
        run.executor = executor = Survey()
        if one.maps_trees:
            run.skip(k)
        else:
            run.take(k)
        places.append(executor.place if executor.reasons else Place())
    return places


class _Run:
    """A step on its way: the arrays of each leaf, as the passes so far have left them."""

    def __init__(self, work: Work, executor: Executor, observing: bool = True):
        self.work, self.plan, self.executor, self.observing = work, work.plan, executor, observing
        self.observed: dict[int, dict[str, dict[int, tuple[Numbers, int]]]] = {}
        self.taken: dict[int, dict[str, Numbers]] = {}
        self.trees = dict(work.trees)
        self.arrays: list[Arrays] = [{Lane.DIRECTION: update, Lane.INCOMING: update} for update in work.updates]
        for arrays, param in zip(self.arrays, work.params or (), strict=False):
            arrays[Lane.PARAM] = param
        for r, slots in enumerate(work.slots):
            for name, column in slots.items():
                for arrays, x in zip(self.arrays, column, strict=True):
                    if x is not None:
                        arrays[Slot(r, name)] = x

    def result(self) -> Result:
        for k, one in enumerate(self.plan.passes):
            if one.maps_trees:
                self._map_trees(one.rules.start)
            else:
                self.take(k)
        for batch in self.plan.batches:
            self._finish(batch)
        for r, rule in enumerate(self.plan.rules):
            if rule.observes:
                numbers = self._numbers(r) if self.observing else None
                self.trees[r] = kept(self.work.when, rule.observe(numbers, self.trees[r], self.executor), self.trees[r])
        lane = Lane.PARAM if self.plan.applies else Lane.UPDATE
        slots = [
            {name: [arrays.get(Slot(r, name)) for arrays in self.arrays] for name in names}
            for r, names in enumerate(self.work.slots)
        ]
        return Result([arrays.get(lane) for arrays in self.arrays], slots, self.trees)

    def take(self, k: int) -> None:
        """One pass over the leaves."""
        one = self.plan.passes[k]
        measuring = [*[one.rules.start] * one.measures, *one.alongside]
        known = {0: self.work.first} if k == 0 and self.work.first is not None else {}
        measured = {r: known[r] if r in known else self._measured_then(r) for r in measuring}
        self.taken |= self._taken([r for r in one.scales if self.plan.rules[r].takes_numbers])
        factors: dict[int, Factors | None] = {}
        for r in one.scales:
            factors[r] = self.factors(r, factors)
        for batch in self.plan.batches:
            if one.acts_on(batch.leaf):
                launch = self.plan.launch(k, batch.leaf)
                shared, local = self._coefficients(launch, batch, measured, factors)
                executor = self.executor.behind_trees if self._continues(k, launch, batch) else self.executor
                self._map(launch, batch, shared, local, executor)

    def _continues(self, k: int, launch: Launch, batch: Batch) -> bool:
        """True if XLA, which makes the directions of whole trees, does best to go on: a pass writes few arrays of them.

        It makes them while it writes, anew for each array, and none of the directions.
        """
        one, before = self.plan.passes[k], self.plan.passes[max(k - 1, 0)]
        behind = before.maps_trees and before.acts_on(batch.leaf) and not (one.measures or one.scales)
        slots = sum(isinstance(buffer.key, Slot) for buffer in launch.writes)
        stored = any(buffer.codec is not None for buffer in (*launch.reads, *launch.writes))
        observes = any(self.plan.rules[r].observes for r in launch.rules)
        return behind and slots <= 1 and not (stored or observes or self.work.is_packed)

    def skip(self, k: int) -> None:
        """A pass over whole trees as if it gave what it got."""
        r = self.plan.passes[k].rules.start
        for batch in self.plan.batches:
            if batch.leaf.members[r]:
                for i in batch.leaves:
                    direction = self.arrays[i][Lane.DIRECTION].astype(batch.leaf.dtype)
                    self._write_direction(r, i, batch.leaf, direction, direction)

    def _finish(self, batch: Batch) -> None:
        """The step, or a cast of the direction, if no pass has done it."""
        if (launch := self.plan.last_launch(batch.leaf)) is not None:
            behind = self.plan.last_pass(batch.leaf) is not None
            self._map(launch, batch, [], {}, self.executor.behind_trees if behind else self.executor)
        for i in batch.leaves:
            if not self.plan.applies and Lane.UPDATE not in self.arrays[i]:
                update = self.arrays[i][Lane.DIRECTION].astype(batch.leaf.update)
                self.arrays[i][Lane.UPDATE] = kept(self.work.when, update, jnp.zeros_like(update))

    # -- One function over a batch ------------------------------------------------------------------------------------

    def _map(
        self,
        launch: Launch,
        batch: Batch,
        shared: Sequence[Coefficients],
        local: Mapping[int, Mapping[str, Numbers]],
        executor: Executor,
    ) -> None:
        """Runs a launch over a batch; ``local``: of its first rules, the coefficients that each leaf has of its own."""
        fn = Fused(
            launch,
            tuple(self.plan.rules[r] for r in launch.rules),
            tuple(tuple(local.get(k, one)) for k, one in enumerate(shared)),
            batch.leaf.dtype,
            batch.leaf.update,
            self.observing,
            tuple(local),
        )
        operands = [
            tuple(itertools.chain(*(parts(self.arrays[i][buffer.key]) for buffer in launch.reads)))
            for i in batch.leaves
        ]
        noise = [self._seeds(buffer.key, batch.leaves) for buffer in launch.rounded]
        scalars = [
            *(x[0] for x in noise),
            *(x[0] for one in local.values() for x in one.values()),
            *(x for one in shared for x in one.values()),
        ]
        arrays = [(x.shape, x.dtype) for x in operands[0]]
        terms = fn.terms(*itertools.starmap(jax.ShapeDtypeStruct, [*arrays, *(((), x.dtype) for x in scalars)]))
        for r, _ in terms:
            check_types(methods.named(self.plan.rules[r]))
        mapped, numbers = executor.map_leaves(
            fn,
            operands,
            [x for one in shared for x in one.values()],
            [*noise, *(x for one in local.values() for x in one.values())],
            dict(launch.in_place if self.work.when is None else launch.kept),
            tuple(terms.values()),
            self.work.when,
        )
        for (r, name), column in zip(terms, numbers, strict=True):
            places = {i: (column, place) for place, i in enumerate(batch.leaves)}
            self.observed.setdefault(r, {}).setdefault(name, {}).update(places)
        for i, results in zip(batch.leaves, mapped, strict=True):
            arrays, rest = self.arrays[i], iter(results)
            if launch.freezes:
                arrays[Lane.GRADIENT] = arrays[Lane.DIRECTION]
            for buffer in launch.writes:
                old: Any = arrays.get(buffer.key)
                new = tuple(itertools.islice(rest, buffer.parts))
                arrays[buffer.key] = old.of(*new) if is_encoded(old) else new[0]

    def _seeds(self, key: Any, leaves: Sequence[int]) -> Numbers:
        """The seeds of a slot, or of the parameter, that is rounded at random."""
        inputs = self.work.inputs
        name = f"{inputs.names[key.rule]}.{key.name}" if isinstance(key, Slot) else "weights"
        names = [f"{name}/{inputs.named[i][0]}" for i in leaves]
        of: Any = self.work.updates if isinstance(key, Slot) else self.work.params
        return seeds(self.work.count, names, [parts(of[i])[0] for i in leaves])

    def _coefficients(
        self,
        launch: Launch,
        batch: Batch,
        measured: Mapping[int, Measured | None],
        factors: Mapping[int, Factors | None],
    ) -> tuple[list[Coefficients], dict[int, Mapping[str, Numbers]]]:
        """The coefficients of each rule that are the same for the batch, and by its place those that leaves have.

        Of a rule that measured each leaf, all are the leaf's own.
        """
        dtype = real_dtype(batch.leaf.dtype)
        shared = [_cast(self.work.coefficients[batch.leaf.members][r], dtype) for r in launch.rules]
        local: dict[int, Mapping[str, Numbers]] = {}
        for k, r in enumerate(launch.rules):
            if (known := factors.get(r)) is not None:
                each = [_cast(known[i], dtype) for i in batch.leaves]
                shared[k] = each[0] if self.plan.rules[r].multiplies else shared[k] | each[0]
                if self.plan.rules[r].scope == "leaf":
                    shared[k], local[k] = {}, {name: [one[name] for one in each] for name in each[0]}
            elif (of_groups := measured.get(r)) is not None:
                settled = self._settled(self.plan.rules[r], batch, of_groups, shared[k])
                if self.plan.rules[r].scope == "leaf":
                    shared[k], local[k] = {}, settled
                else:
                    shared[k] = settled
        return shared, local

    def _settled(self, rule: AbstractRule, batch: Batch, measured: Measured, given: Coefficients) -> Any:
        """The coefficients that follow from what was measured: of the tree, or a column of those of each leaf."""
        dtype, numbers, places = real_dtype(batch.leaf.dtype), measured.numbers, measured.places
        columns = numbers if isinstance(numbers, dict) else {"": numbers}
        # A norm over leaves of two widths may be none of the narrow.
        wide = promoted(dtype, *(x[0].dtype for x in columns.values()))
        given = _cast(given, wide)

        def settled(number: Coefficients) -> Coefficients:
            return _settled(rule, wide, dtype, given, number if isinstance(numbers, dict) else number[""])

        if rule.scope == "tree":
            return settled({name: x[0] for name, x in columns.items()})
        order = [places[i] for i in batch.leaves]
        if not any(isinstance(x, list) for x in columns.values()):
            return jax.vmap(settled)({name: in_order(x, order) for name, x in columns.items()})
        each = [settled({name: x[i] for name, x in columns.items()}) for i in order]
        return {name: [one[name] for one in each] for name in each[0]}

    def _acted_on(self, r: int) -> dict[int, Leaf]:
        """The leaves that a rule acts on, by their positions."""
        return {i: batch.leaf for batch in self.plan.batches if batch.leaf.members[r] for i in batch.leaves}

    def _numbers(self, r: int) -> dict[str, Numbers]:
        """The numbers of an observer, by term, of each leaf that it acts on."""
        acting = sorted(self._acted_on(r))
        return {name: _in_leaf_order(places, acting) for name, places in self.observed.get(r, {}).items()}

    # -- Measurements -------------------------------------------------------------------------------------------------

    def _measured_then(self, r: int) -> Measured | None:
        """The measurements of a rule; zeros where the step does not happen."""
        if self.work.when is None or not self._acted_on(r):
            return self.measurement(r)
        places = {}

        def taken() -> Any:
            measured = self.measurement(r)
            assert measured is not None
            places.update(measured.places)
            return measured.numbers

        numbers = Once(taken)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), numbers.avals)  # noqa: E731
        return Measured(either(self.work.when, numbers, zeros), places)

    def measurement(self, r: int) -> Measured | None:
        """The measurements of a rule, of the leaves that it acts on, if there are any."""
        rule = self.plan.rules[r]
        acts = self._acted_on(r)
        seen = {i: self._seen(r, i, acts[i]) for i in sorted(acts)}
        if not seen:
            return None
        if rule.scope == "leaf":
            numbers = _measured(rule, self.executor, [[leaf] for leaf in seen.values()])
            return Measured(numbers, {i: place for place, i in enumerate(seen)})
        return Measured(_measured(rule, self.executor, [list(seen.values())]), dict.fromkeys(seen, 0))

    def _seen(self, r: int, i: int, leaf: Leaf) -> dict[str, jax.Array]:
        """The lanes of a leaf that a measurement reads."""
        arrays, reads = self.arrays[i], self.plan.rules[r].reads
        direction = arrays[Lane.DIRECTION].astype(leaf.dtype)
        lanes = {Lane.DIRECTION: direction, Lane.GRADIENT: direction}
        if Lane.GRADIENT.value in reads and self.plan.is_accumulated(leaf, r):
            lanes[Lane.GRADIENT] = arrays[Lane.GRADIENT].astype(leaf.dtype)
        if self.plan.has_second_moment(leaf, r):
            lanes[Lane.SECOND_MOMENT] = arrays[Lane.SECOND_MOMENT]
        if Lane.PARAM in arrays:
            lanes[Lane.PARAM] = widened_to(decoded(arrays[Lane.PARAM]), leaf.dtype)
        return {lane.value: x for lane, x in lanes.items() if lane.value in reads}

    def _taken(self, rules: Sequence[int]) -> dict[int, dict[str, Numbers]]:
        """The numbers of rules that scale, by term, of each leaf that they act on: all by one reading."""
        flat = self.work.inputs.treedef.flatten_up_to
        inside = {r: self.plan.rules[r].lanes_in(self.trees[r]) for r in rules}
        columns = {(r, name): flat(tree) for r, own in inside.items() for name, tree in own.items()}
        taken: dict[int, dict[str, dict[int, tuple[Numbers, int]]]] = {r: {} for r in rules}
        for batch in self.plan.batches:
            acting = [r for r in rules if batch.leaf.members[r]]
            rows: list[dict[Any, jax.Array]] = []  # lanes by name, and what is in a state by rule and name
            for i in batch.leaves if acting else ():
                lanes = {lane: x for r in acting for lane, x in self._seen(r, i, batch.leaf).items()}
                rows.append(lanes | {(r, name): x[i] for (r, name), x in columns.items() if r in acting})
            if not rows:
                continue
            at = {key: k for k, key in enumerate(rows[0])}
            of = _Terms(
                tuple(self.plan.rules[r] for r in acting),
                tuple(
                    tuple(
                        [(lane, at[lane]) for lane in self.plan.rules[r].reads if lane in at]
                        + [(name, at[r, name]) for name in inside[r]]
                    )
                    for r in acting
                ),
            )
            hows = of.hows(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in rows[0].values()))
            apart = any(self.plan.rules[r].scope == "leaf" for r in acting)
            operands = [tuple(row.values()) for row in rows]
            numbers = self.executor.numbers(of, operands, [*hows.values()], vector=not apart)
            for (k, name), column in zip(hows, numbers, strict=True):
                places = {i: (column, place) for place, i in enumerate(batch.leaves)}
                taken[acting[k]].setdefault(name, {}).update(places)
        return {
            r: {name: _in_leaf_order(places, sorted(places)) for name, places in terms.items()}
            for r, terms in taken.items()
            if terms
        }

    # -- Whole trees --------------------------------------------------------------------------------------------------

    def _of_trees(self, r: int, before: Mapping[int, Factors | None]) -> Any:
        """What ``apply_tree`` of a rule gives for the trees, which have None where it does not act; None if nowhere.

        ``before``: the factors of the rules before it in the pass.
        """
        rule, work = self.plan.rules[r], self.work
        acts = self._acted_on(r)
        coefficients = next((given[r] for members, given in work.coefficients.items() if members[r]), {})
        if rule.hyperparameters() and not acts:
            return None
        resting = work.inputs.resting
        as_it_is = {i: rests.gradient for i, rests in resting.items() if rests.members[r]}

        def tree(leaves: Mapping[int, Any]) -> Any:
            return work.inputs.unflatten([leaves.get(i) for i in range(len(self.arrays))])

        def lane(key: Lane) -> dict[int, Any]:
            return {i: self.arrays[i][key].astype(leaf.dtype) for i, leaf in acts.items()}

        reads = rule.reads if rule.scales else (Lane.DIRECTION.value, Lane.GRADIENT.value)
        directions = lane(Lane.DIRECTION) if {Lane.DIRECTION.value, Lane.GRADIENT.value} & {*reads} else {}
        gradients = {
            i: self.arrays[i][Lane.GRADIENT].astype(leaf.dtype) if self.plan.is_accumulated(leaf, r) else directions[i]
            for i, leaf in acts.items()
            if Lane.GRADIENT.value in reads
        }
        params = None
        if work.params is not None:
            params = {i: decoded(work.params[i]) for i in acts}
            if not rule.takes_stored:
                params = {i: widened_to(params[i], real_dtype(leaf.dtype)) for i, leaf in acts.items()}
            params = tree(params | {i: work.params[i] for i in as_it_is})
        trees = Trees(
            tree(lane(Lane.INCOMING) | as_it_is),
            tree(gradients | as_it_is) if Lane.GRADIENT.value in reads else None,
            tree(directions | as_it_is) if Lane.DIRECTION.value in reads else None,
            params,
            work.extra,
            work.count,
            self.executor,
            coefficients,
            tree({i: self.arrays[i][Lane.SECOND_MOMENT] for i in acts}) if rule.second_moment else None,
            tree(self._to_come(r, acts, before)) if rule.takes_factors and before else None,
            self.taken.get(r),
        )
        mapping = _mapped if rule.pure and not rule.maps_slots else methods.tree_applied
        returned, self.trees[r] = mapping(rule, trees, self.trees[r])
        return returned

    def _map_trees(self, r: int) -> None:
        """A rule that maps whole trees: the directions, and what it makes of leaves of other dtypes."""
        directions = self._of_trees(r, {})
        if directions is None:
            return
        acts, resting = self._acted_on(r), self.work.inputs.resting
        for i, u in enumerate(self.work.inputs.treedef.flatten_up_to(directions)):
            if i in resting and resting[i].members[r]:
                resting[i] = resting[i]._replace(gradient=u)
            elif i in acts:
                before, dtype = self.arrays[i][Lane.DIRECTION], acts[i].dtype
                self._write_direction(r, i, acts[i], before.astype(dtype), u.astype(dtype))

    def _to_come(self, r: int, acts: Mapping[int, Leaf], before: Mapping[int, Factors | None]) -> dict[int, jax.Array]:
        """The product of the factors that a pass will multiply the gradient by, of leaves, until rule ``r``."""
        known = [given for given in before.values() if given is not None]

        def product(i: int, leaf: Leaf) -> jax.Array:
            multiply = (
                [] if self.plan.is_accumulated(leaf, r) else [given[i]["factor"] for given in known if i in given]
            )
            one = jnp.ones((), real_dtype(leaf.dtype))
            return math.prod((factor.astype(one.dtype) for factor in multiply), start=one)

        return {i: product(i, leaf) for i, leaf in acts.items()}

    def factors(self, r: int, before: Mapping[int, Factors | None]) -> Factors | None:
        """The factors of a rule that scales, of the leaves that it acts on; None if there are none."""
        factors, acts = self._of_trees(r, before), sorted(self._acted_on(r))
        if factors is None or not acts:
            return None
        if self.plan.rules[r].scope == "tree":
            return dict.fromkeys(acts, factors if isinstance(factors, dict) else {"factor": factors})
        leaves = self.work.inputs.treedef.flatten_up_to(factors)
        return {i: {"factor": leaves[i]} for i in acts}

    def _write_direction(self, r: int, i: int, leaf: Leaf, before: jax.Array, after: jax.Array) -> None:
        if self.plan.rules[r].accumulates and not self.plan.is_accumulated(leaf, r):
            self.arrays[i][Lane.GRADIENT] = before
        self.arrays[i][Lane.DIRECTION] = after


@dataclass(frozen=True)
class _Terms:
    """The terms of several rules, as a function of the arrays of a leaf.

    Attributes:
        rules: the rules.
        lanes: for each of them its lanes, by name the positions of their arrays.
    """

    rules: tuple[AbstractRule, ...]
    lanes: tuple[tuple[tuple[str, int], ...], ...]

    def __call__(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(x for _, x in self._of(arrays).values())

    def hows(self, *avals: Any) -> dict[tuple[int, str], Literal["sum", "norm"]]:
        """The ways in which numbers are taken of them, by the place of the rule and the name of the term."""
        hows: dict[tuple[int, str], Literal["sum", "norm"]] = {}
        jax.eval_shape(lambda *arrays: hows.update({key: how for key, (how, _) in self._of(arrays).items()}), *avals)
        return hows

    def _of(self, arrays: Sequence[jax.Array]) -> dict[tuple[int, str], tuple[Any, jax.Array]]:
        given = [{name: arrays[at] for name, at in own} for own in self.lanes]
        each = [methods.observed(rule, lanes) for rule, lanes in zip(self.rules, given, strict=True)]
        return {(k, name): term for k, terms in enumerate(each) for name, term in terms.items()}


class _Surveyed(_Run):
    """A step of which nothing but the places of its passes is of interest."""

    def factors(self, r: int, before: Mapping[int, Factors | None]) -> Factors | None:
        """Ones, where the rule but multiplies."""
        if not self.plan.rules[r].maps_slots:
            return {i: {"factor": jnp.ones(())} for i in self._acted_on(r)}
        executor, self.executor = self.executor, REFERENCE
        factors, self.executor = super().factors(r, before), executor
        return factors

    def _taken(self, rules: Sequence[int]) -> dict[int, dict[str, Numbers]]:
        executor, self.executor = self.executor, REFERENCE
        taken, self.executor = super()._taken(rules), executor
        return taken


def _in_leaf_order(places: Mapping[int, tuple[Numbers, int]], leaves: Sequence[int]) -> Numbers:
    """The numbers of these leaves, which stand in several columns; 0 for a leaf that has none."""
    columns = list({id(column): column for column, _ in places.values()}.values())
    if len(columns) == 1 and [places[i][1] if i in places else -1 for i in leaves] == list(range(len(columns[0]))):
        return columns[0]
    dtype = promoted(*(column[0].dtype for column in columns))
    starts = dict(zip(map(id, columns), itertools.accumulate(map(len, columns), initial=0), strict=False))
    joined = jnp.concatenate([*(stacked(column).astype(dtype) for column in columns), jnp.zeros(1, dtype)])
    at = {i: starts[id(column)] + place for i, (column, place) in places.items()}
    return in_order(joined, [at.get(i, joined.size - 1) for i in leaves])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(rule: AbstractRule, executor: Executor, groups: list[list[dict[str, jax.Array]]]) -> Any:
    """Outside of ``jit`` compiled once: a loop that each call makes anew would be compiled anew."""
    return methods.measured(
        rule, [[methods.to_measure(rule, lanes) for lanes in group] for group in groups], executor.total
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _settled(rule: AbstractRule, wide: jnp.dtype, dtype: jnp.dtype, given: Coefficients, number: Any) -> Coefficients:
    """Traced once for all leaves, and outside of ``jit`` compiled once for all steps."""
    return _cast(methods.settled(rule, given, jax.tree.map(lambda x: x.astype(wide), number)), dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(
    rule: AbstractRule, treedef: Any, places: tuple[int, ...], distinct: list[Any], state: Any
) -> tuple[Any, Any]:
    trees: Trees = treedef.unflatten([distinct[place] for place in places])
    like = jax.tree.map(jnp.asarray, methods.factors_like(rule, trees)) if rule.scales else trees.direction
    return left_to_compiler(functools.partial(methods.tree_applied, rule), (like, state), trees, state)


def _mapped(rule: AbstractRule, trees: Trees, state: Any) -> tuple[Any, Any]:
    """A pure rule outside of ``jit`` compiled once; it reads no extra arguments. One array stays one in all trees."""
    check_on_device(f"slot {rule.title}.state", state)
    leaves, treedef = jax.tree.flatten(trees._replace(extra={}))
    distinct = {id(x): x for x in leaves}
    place = {key: i for i, key in enumerate(distinct)}
    return _compiled(rule, treedef, tuple(place[id(x)] for x in leaves), list(distinct.values()), state)


def _cast(coefficients: Coefficients, dtype: jnp.dtype) -> Coefficients:
    return {name: value.astype(dtype) for name, value in coefficients.items()}
