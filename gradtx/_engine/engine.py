"""From one array to trees, and from rules to a state: written once for every rule and every chain."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, Protocol

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core import methods, selectors, verification
from gradtx._core.blank import Lesson, is_blank, looks_ahead
from gradtx._core.contract import AbstractRule, Hyperparameters, Tick
from gradtx._core.control import only_types
from gradtx._core.limits import Limits, checked, scheduled
from gradtx._core.mesh import puts_constants, starts
from gradtx._core.numerics import (
    added,
    complement,
    compute_dtype,
    is_complex,
    residual_of,
    split,
    widest,
    without_residuals,
)
from gradtx._core.selectors import Leaves, flatten_with_paths
from gradtx._core.signal import Weights
from gradtx._core.state import ChainState, Hyperparameter, PackedState, knowing
from gradtx._engine import checks
from gradtx._engine.checks import Layout
from gradtx._engine.execution import Resting, Work, current, execute, survey
from gradtx._engine.plan import Leaf, Place, Plan, plan

Scalars = dict[str, jax.Array]
Hyperparams = dict[str, Scalars]


Ahead = Mapping[str, Scalars]
"""Hyperparameters of the next step, ``{rule: {name: scalar}}``."""

NOTHING: Ahead = MappingProxyType({})


class Stepper(Hashable, Protocol):
    """Something that takes a step of a chain, and whose value says all about how."""

    def run(
        self, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply: bool, ahead: Ahead = NOTHING
    ) -> tuple[Any, Any]:
        """Updates, or the parameters after the step, and the next state."""
        ...


class Lifted:
    """Named rules that act on trees. What ``init`` and ``update`` of a rule or a chain do."""

    def __init__(self, rules: Sequence[AbstractRule]):
        self.rules = tuple(rules)
        self.names = unique_names(self.rules)
        self.layout = _layout(self.rules, self.names)
        self.known = tuple(self._known_hyperparams())
        self.state_type = knowing(ChainState, self.known)
        self._blanks: tuple[Any, Blanks] | None = None
        self.asks = any(selectors.asks(rule.where) for rule in self.rules)

    def blanks(self) -> Blanks:
        """The same without the values of hyperparameters, of rules as they are written now."""
        source = [rule.source() for rule in self.rules]
        if self._blanks is None or self._blanks[0] != source:
            blanks = [rule.blank() for rule in self.rules]
            where = [rule.where for rule in self.rules]
            self._blanks = source, Blanks(blanks, self.names, self.layout, where)
        return self._blanks[1]

    @starts
    def init(self, params: Any) -> ChainState:
        """The state before the first step."""
        leaves, treedef, chosen, resting = self._inputs(params, "parameters")
        checks.check_real(leaves, chosen, self.rules, self.names, "parameters")
        self._check_rules(leaves, chosen)
        self._check_order(leaves, chosen)
        arrays = [None if i in resting else jnp.asarray(x, compute_dtype(x)) for i, (_, x) in enumerate(leaves)]
        dtype = compute_dtype(*(x.real for x in arrays if x is not None))
        count = jnp.zeros((), jnp.int32)
        slots = {}
        for name, rule, ours in zip(self.names, self.rules, chosen, strict=True):
            kept = [x if acts else None for x, acts in zip(arrays, ours, strict=True)]
            on_leaves = [None if x is None else _slots(rule, x) for x in kept]
            slots[name] = {
                slot: treedef.unflatten([None if own is None else own[slot] for own in on_leaves])
                for slot in self.layout.leaf_slots(name)
            }
            slots[name] |= {slot: jnp.asarray(value, dtype) for slot, value in rule.scalars().items()}
            if rule.whole:
                for i in resting:
                    kept[i] = leaves[i][1] if ours[i] else None
                slots[name]["state"] = rule.init_tree(treedef.unflatten(kept))
        slots = _owned(slots, jax.tree.leaves(arrays))
        state = self.state_type(count, self._hyperparams(count, dtype, None), _nonempty(slots))
        if any(rule.where is not None for rule in self.rules):
            self._tick(state.hyperparams, state, chosen)  # refuses an average that two groups of leaves need twice
        return state

    def compiles(self, blanks: Blanks, updates: Any, state: Any, params: Any) -> bool:
        """Whether a step outside of ``jit`` is one program, with hyperparameters as data."""
        if not all(rule.pure or not rule.whole for rule in self.rules) or not isinstance(
            state, ChainState | PackedState
        ):
            return False
        if any(callable(x) and not is_blank(x) for rule in blanks.rules for x in rule.hyperparameters().values()):
            return False  # a rule that calls its schedule itself
        names = {name: without_residuals(own).keys() for name, own in state.hyperparams.items()}
        expected = {name: own.keys() for name, own in self.layout.hyperparams.items()}
        return names == expected and all(map(_has_value, jax.tree.leaves((updates, state, params))))

    @puts_constants
    def update(
        self, updates: Any, state: ChainState, params: Any, extra: dict[str, Any], apply: bool = False
    ) -> tuple[Any, ChainState]:
        """One step: updates in the dtypes of those that came in, or the parameters after it, and the next state."""
        return stepped(self, lambda lifted: lifted, updates, state, params, extra, apply)

    def run(
        self, updates: Any, state: ChainState, params: Any, extra: dict[str, Any], apply: bool, ahead: Ahead = NOTHING
    ) -> tuple[Any, ChainState]:
        """The same, operation by operation; ``ahead``: what rules ask of the next step, where it is data."""
        work, hyperparams, scalars = self._work(updates, state, params, extra, apply, ahead)
        values = [x for i, x in enumerate(work.updates) if i not in work.resting]
        out, slots = execute(work, current(traced=not have_values(values)))
        for i, rests in work.resting.items():
            param = work.params[i] if work.params else None
            update = _resting_update(rests, param)
            out[i] = _after(param, None if rests.frozen else update) if apply else update

        unflatten, after = work.treedef.unflatten, {}
        for name, rule, own, numbers in zip(self.names, self.rules, slots, scalars, strict=True):
            trees = {"state": own} if rule.whole else {slot: unflatten(xs) for slot, xs in own.items()}
            after[name] = trees | numbers
        count = jnp.asarray(optax.safe_increment(state.count))
        return unflatten(out), self.state_type(count, hyperparams, _nonempty(after))

    def _work(
        self, updates: Any, state: ChainState, params: Any, extra: dict[str, Any], apply: bool, ahead: Ahead = NOTHING
    ) -> tuple[Work, Hyperparams, list[dict[str, Any]]]:
        """A step that is ready to run, and of its state the hyperparameters and the scalar slots after it."""
        leaves, treedef, chosen, resting = self._inputs(updates, "updates", params)
        checks.check_real(leaves, chosen, self.rules, self.names, "updates")
        slots = checks.check_state(state, self.layout, treedef, leaves, chosen)
        if apply and params is None and leaves:
            raise ValueError("gradtx: step changes parameters, and found None: call step(tx, params, grads, state).")
        param_leaves = checks.check_params(params, treedef, leaves, chosen, self.rules, self.names)
        hyperparams = self._hyperparams(state.count, None, state.hyperparams)
        coefficients, scalars = self._tick(hyperparams, state, chosen, ahead)

        arrays = [x if i in resting else _array(x) for i, (_, x) in enumerate(leaves)]
        stored = param_leaves and [x if i in resting else _array(x) for i, x in enumerate(param_leaves)]
        known = self._known(arrays, stored, slots, chosen, resting)
        for i, (name, rule) in enumerate(self._named()):
            if rule.whole:
                slots[i] = state.slots[name]["state"]
        how = plan(self.blanks().rules, known, apply)
        work = Work(how, coefficients, arrays, slots, stored, treedef, extra, resting, state.count)
        return work, hyperparams, scalars

    def after(self, state: ChainState, params: Any, steps: int) -> ChainState:
        """The state with its scalars, the clock, weights and schedules, as so many steps leave them, and no other."""
        _, _, chosen, _ = self._inputs(params, "parameters")
        scalars = {name: {slot: state.slots[name][slot] for slot in rule.scalars()} for name, rule in self._named()}

        def one(_: Any, state: ChainState) -> ChainState:
            hyperparams = self._hyperparams(state.count, None, state.hyperparams)
            numbers = dict(zip(self.names, self._tick(hyperparams, state, chosen)[1], strict=True))
            return ChainState(jnp.asarray(optax.safe_increment(state.count)), hyperparams, numbers)

        count, hyperparams, scalars = jax.lax.fori_loop(0, steps, one, state._replace(slots=scalars))
        slots = {name: state.slots.get(name, {}) | own for name, own in scalars.items()}
        return self.state_type(count, hyperparams, _nonempty(slots))

    def plan(self, params: Any, state: ChainState, apply: bool = False) -> Plan:
        """How a step runs on leaves like these parameters; they may be abstract."""
        leaves, treedef, chosen, resting = self._inputs(params, "parameters")
        slots = checks.check_state(state, self.layout, treedef, leaves, chosen)
        arrays = [leaf for _, leaf in leaves]
        return plan(self.blanks().rules, self._known(arrays, arrays, slots, chosen, resting), apply)

    def places(self, params: Any, state: ChainState, apply: bool = False) -> list[Place]:
        """Where each pass of the plan would run; the parameters may be abstract."""
        places: list[Place] = []
        jax.eval_shape(lambda p, s: places.extend(survey(self._work(p, s, p, {}, apply)[0])), params, state)
        return places

    def _known(
        self,
        arrays: Sequence[Any],
        params: Sequence[Any] | None,
        slots: Sequence[Any],
        chosen: checks.Chosen,
        resting: Mapping[int, Resting],
    ) -> list[Leaf | None]:
        """What a plan has to know of each leaf; None for one that is no number."""
        known: list[Leaf | None] = []
        for i, x in enumerate(arrays):
            if i in resting and not resting[i].computed:
                known.append(None)
                continue
            own = tuple(
                tuple(xs[i].dtype for xs in of_rule.values()) if ours[i] else ()
                for of_rule, ours in zip(slots, chosen, strict=True)
            )
            param = None if params is None else params[i].dtype
            dtype = widest(x.dtype, *([] if param is None else [param]), *itertools.chain(*own))
            known.append(Leaf(tuple(ours[i] for ours in chosen), x.shape, dtype, x.dtype, param, own))
        return known

    def inputs(self, params: Any) -> tuple[Leaves, Any, list[list[bool]]]:
        """The leaves of parameters, their structure, and for each rule the leaves that it acts on."""
        return self._inputs(params, "parameters")[:3]

    def _inputs(
        self, tree: Any, what: str, params: Any = None
    ) -> tuple[Leaves, Any, list[list[bool]], dict[int, Resting]]:
        """The leaves, the structure, and for each rule the leaves that it acts on; and the leaves that rest.

        A parameter without a gradient has zeros or itself in its place.

        Raises:
            TypeError, ValueError: for a leaf that is no array of numbers, or has no gradient, and is not frozen.
        """
        tree, given = checks.filled(tree, params)
        leaves, treedef = flatten_with_paths(tree)
        others = checks.leaves_like(treedef, params)
        chosen = [list(ours) for ours in self.chosen(leaves, treedef)]
        resting: dict[int, Resting] = {}
        for i, (path, leaf) in enumerate(leaves):
            is_number = checks.is_number(leaf) and (others is None or checks.is_number(others[i]))
            gradient = given[i] if given else leaf
            if is_number and gradient is leaf:
                continue
            acting = [r for r, ours in enumerate(chosen) if ours[i]]
            last = self.rules[acting[-1]] if acting else None
            if last is not None and not last.freezes and not last.takes_anything:
                rule = next(self.names[r] for r in acting if not self.rules[r].freezes)
                checks.check_gradient(path, gradient, rule)
                checks.check_number(path, leaf, what, rule)
                checks.check_number(path, leaf if others is None else others[i], "parameters", rule)
            frozen = last is not None and last.freezes
            for rule, ours in () if is_number else zip(self.rules, chosen, strict=True):
                ours[i] = ours[i] and rule.takes_anything and not frozen
            members = tuple(ours[i] and rule.takes_anything for rule, ours in zip(self.rules, chosen, strict=True))
            resting[i] = Resting(gradient, frozen, is_number, members)
        return leaves, treedef, chosen, resting

    def chosen(self, leaves: Leaves, treedef: Any) -> list[list[bool]]:
        """For each rule, for each leaf, whether the rule acts on it."""
        return _chosen([rule.where for rule in self.rules], self.names, leaves, treedef)

    def _check_rules(self, leaves: Leaves, chosen: checks.Chosen) -> None:
        """Each rule by itself, on one of the leaves that it acts on."""
        for rule, ours in zip(self.rules, chosen, strict=True):
            acted_on = (leaf for (_, leaf), acts in zip(leaves, ours, strict=True) if acts and checks.is_number(leaf))
            if (leaf := next(acted_on, None)) is not None:
                verification.check(rule, jax.ShapeDtypeStruct(jnp.shape(leaf), compute_dtype(leaf)))

    def _check_order(self, leaves: Leaves, chosen: checks.Chosen) -> None:
        """The order of the rules, for each group of leaves that the same rules act on."""
        for members, at in _grouped(chosen).items():
            ours = [i for i, acts in enumerate(members) if acts]
            leaf = "" if len(ours) == len(self.rules) else f", for leaf {leaves[at[0]][0]!r}"
            checks.check_order([self.rules[i] for i in ours], [self.names[i] for i in ours], leaf)

    def _known_hyperparams(self) -> Iterable[tuple[str, Hyperparameter]]:
        for name, rule in self._named():
            limits = rule.limits()
            for own, value in rule.hyperparameters().items():
                yield f"{name}.{own}", Hyperparameter(limits.get(own, Limits()), callable(value))

    def _named(self) -> Iterable[tuple[str, AbstractRule]]:
        return zip(self.names, self.rules, strict=True)

    def _hyperparams(self, count: jax.Array, dtype: Any, held: Hyperparams | None) -> Hyperparams:
        """This step's hyperparameters: scheduled ones from their schedules, the others as the state holds them."""
        now: Hyperparams = {}
        for name, rule in self._named():
            now[name] = {}
            for own, value in rule.hyperparameters().items():
                old = None if held is None else jnp.asarray(held[name][own])
                keeps_residual = own in rule.complements() and (held is None or residual_of(own) in held[name])
                if (
                    held is not None
                    and old is not None
                    and (is_blank(value) or not callable(value) or only_types.get())
                ):
                    now[name][own] = old
                    if keeps_residual:
                        now[name][residual_of(own)] = jnp.asarray(held[name][residual_of(own)])
                    continue
                if callable(value):
                    value = scheduled(value, count, f"{name}.{own}")
                limits = rule.limits().get(own, Limits())
                exact = _scalar(value, f"{name}.{own}", limits, dtype if old is None else old.dtype)
                now[name][own], residual = split(exact, dtype if old is None else old.dtype)
                if keeps_residual:
                    now[name][residual_of(own)] = residual
        return _nonempty(now)

    def now(self, state: Any) -> tuple[Any, Ahead]:
        """The state with this step's hyperparameters in it, and those of the next step that rules ask for."""
        hyperparams = self._hyperparams(jnp.asarray(state.count), None, state.hyperparams)
        ahead: dict[str, Scalars] = {}
        for name, rule in self._named():
            asked = looks_ahead(type(rule))
            for own, value in rule.hyperparameters().items():
                if callable(value) and own in asked:
                    dtype = hyperparams[name][own].dtype
                    upcoming = scheduled(value, jnp.asarray(optax.safe_increment(state.count)), f"{name}.{own}")
                    limits = rule.limits().get(own, Limits())
                    found, residual = split(_scalar(upcoming, f"{name}.{own}", limits, dtype), dtype)
                    ahead.setdefault(name, {})[own] = found
                    if own in rule.complements():
                        exact = {own: found, residual_of(own): residual}
                        ahead[name][rule.complements()[own]] = complement(exact, own)
        return state._replace(hyperparams=hyperparams), ahead

    def _tick(
        self, hyperparams: Hyperparams, state: ChainState, chosen: checks.Chosen, ahead: Ahead = NOTHING
    ) -> tuple[dict[tuple[bool, ...], list[dict[str, jax.Array]]], list[dict[str, Any]]]:
        """The scalar work of a step, weights passed along: coefficients for each group of leaves, and scalar slots."""
        one = jnp.ones((), compute_dtype(*jax.tree.leaves(state.hyperparams)))
        grouped = _grouped(chosen)
        weights = dict.fromkeys(grouped, Weights(one, one))
        coefficients: dict[tuple[bool, ...], list[dict[str, jax.Array]]] = {members: [] for members in grouped}
        scalars = []
        for r, (name, rule) in enumerate(self._named()):
            held = {slot: state.slots[name][slot] for slot in rule.scalars()}
            h = Hyperparameters(**_with_complements(hyperparams.get(name, {}), rule))
            h.ahead = ahead.get(name, {})
            ticks: dict[tuple[int, int], Tick] = {}  # by the incoming weights: what they are made of tells them apart
            for members in grouped:
                if not members[r]:
                    coefficients[members].append({})
                    continue
                key = (id(weights[members].direction), id(weights[members].second_moment))
                if key not in ticks:
                    ticks[key] = methods.ticked(rule, h, SimpleNamespace(**held), weights[members], state.count)
                coefficients[members].append(ticks[key].coefficients)
                weights[members] = ticks[key].weights
            if held and rule.second_moment != "makes" and len({direction for direction, _ in ticks}) > 1:
                raise ValueError(
                    f"gradtx: rule {name!r} averages directions of different weights, since a rule before it averages "
                    "on some leaves only. Give each group of leaves a rule of its own (see where), or a chain of its "
                    "own (see partition)."
                )
            last = next(iter(ticks.values()), None)
            scalars.append({k: x if last is None else last.scalars[k].astype(x.dtype) for k, x in held.items()})
        return coefficients, scalars


def applied(params: Any, updates: Any) -> Any:
    """What ``optax.apply_updates`` does; parameters whose update is None or float0 stay, and integers stay exact."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(_after, leaves, treedef.flatten_up_to(updates)))


def _after(param: Any, update: Any) -> Any:
    if checks.has_no_gradient(update):
        return param
    if checks.is_number(param):
        return added(jnp.asarray(param), jnp.asarray(update))
    return param + jnp.asarray(update, jnp.result_type(param))


def _resting_update(rests: Resting, param: Any) -> Any:
    """The update: of a frozen leaf zeros, in the parameter's dtype if there is no gradient."""
    if rests.gradient is None or not rests.frozen:
        return rests.gradient
    if not checks.has_no_gradient(rests.gradient):
        return jnp.zeros_like(rests.gradient)
    if param is None or jnp.issubdtype(param.dtype, jax.dtypes.extended):
        return rests.gradient
    return jnp.zeros_like(param)


class Blanks(Lifted):
    """Rules without the values of hyperparameters: a value, equal for all chains that one program can run.

    Args:
        rules: made blank.
        names: of the rules in the state.
        layout: of the state.
        where: the selector of each rule.
        chosen: the leaves that each of them acts on, where the selectors have been asked.
    """

    def __init__(
        self,
        rules: Sequence[AbstractRule],
        names: Sequence[str],
        layout: Layout,
        where: Sequence[Any],
        chosen: Sequence[Sequence[bool]] | None = None,
    ):
        self.rules, self.names, self.layout, self.state_type = tuple(rules), tuple(names), layout, ChainState
        self._value = self.rules, self.names, tuple(where), None if chosen is None else tuple(map(tuple, chosen))
        self._hash = hash(self._value)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Blanks) and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash

    def blanks(self) -> Blanks:
        """Itself."""
        return self

    def chosen(self, leaves: Leaves, treedef: Any) -> list[list[bool]]:
        """For each rule, for each leaf, whether the rule acts on it."""
        _, names, where, chosen = self._value
        return _chosen(where, names, leaves, treedef) if chosen is None else [list(ours) for ours in chosen]

    def acting_on(self, chosen: Sequence[Sequence[bool]]) -> Blanks:
        """The same for leaves that were chosen."""
        return Blanks(self.rules, self.names, self.layout, (), chosen)


def _has_value(x: Any) -> bool:
    """Whether it is an array of numbers, or a number, whose value is known."""
    if isinstance(x, jax.core.Tracer):
        return False
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "biufcV"
    return isinstance(x, jax.Array | bool | int | float | complex)


def have_values(*trees: Any) -> bool:
    """Whether all leaves are arrays that have values, as outside of ``jit`` and of what else traces."""
    return all(isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def stepped(
    lifted: Lifted,
    around: Callable[[Lifted], Stepper],
    updates: Any,
    state: Any,
    params: Any,
    extra: dict[str, Any],
    apply: bool,
) -> tuple[Any, Any]:
    """A step, again whenever it showed something about a class of rules.

    Args:
        lifted: the rules.
        around: what takes the step with them.
        updates, state, params, extra, apply: as for ``Stepper.run``.
    """
    while True:
        try:
            return _stepped(lifted, around, updates, state, params, extra, apply)
        except Lesson as lesson:
            lesson.learn()


def _stepped(lifted: Lifted, around: Any, updates: Any, state: Any, params: Any, extra: Any, apply: bool) -> Any:
    blanks = lifted.blanks()
    if not lifted.compiles(blanks, updates, state, params):
        return around(lifted).run(updates, state, params, extra, apply)
    if lifted.asks:
        blanks = blanks.acting_on(lifted.chosen(*flatten_with_paths(checks.filled(updates, params)[0])))
    state, ahead = lifted.now(state)
    out, after = _compiled(around(blanks), apply, updates, state, params, ahead)
    kind: Any = ChainState if isinstance(after, ChainState) else PackedState
    return out, knowing(kind, lifted.known)(*after)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(stepper: Stepper, apply: bool, updates: Any, state: Any, params: Any, ahead: Ahead) -> tuple[Any, Any]:
    """A step outside of ``jit``: one call of one program, where operations one by one would be a hundred."""
    return stepper.run(updates, state, params, {}, apply, ahead)


def _chosen(where: Sequence[Any], names: Sequence[str], leaves: Leaves, treedef: Any) -> list[list[bool]]:
    everywhere = [True] * len(leaves)
    return [
        everywhere if one is None else selectors.chosen(one, leaves, treedef, f"where of rule {name!r}")
        for one, name in zip(where, names, strict=True)
    ]


def _grouped(chosen: checks.Chosen) -> dict[tuple[bool, ...], list[int]]:
    """The positions of the leaves, by the rules that act on them."""
    groups: dict[tuple[bool, ...], list[int]] = {} if any(chosen) else {(True,) * len(chosen): []}
    for i, members in enumerate(zip(*chosen, strict=True)):
        groups.setdefault(members, []).append(i)
    return groups


def unique_names(rules: Iterable[AbstractRule]) -> tuple[str, ...]:
    """A name for each rule: the given one, or its label, then label_1, label_2, ..."""
    rules = list(rules)
    given = Counter(rule.name for rule in rules if rule.name is not None)
    for name, times in given.items():
        if times > 1:
            raise ValueError(f"gradtx: {times} rules of one chain are named {name!r}; give each its own name.")
    names: list[str] = []
    for rule in rules:
        candidates = itertools.chain([rule.label], (f"{rule.label}_{i}" for i in itertools.count(1)))
        names.append(rule.name or next(name for name in candidates if name not in given and name not in names))
    return tuple(names)


def _layout(rules: Sequence[AbstractRule], names: Sequence[str]) -> Layout:
    hyperparams, slots = {}, {}
    for name, rule in zip(names, rules, strict=True):
        hyperparams[name] = dict.fromkeys(rule.hyperparameters(), "scalar")
        scalars = methods.numbered(rule)
        kinds = functools.partial(methods.slotted, rule, kinds_alone=True)
        on_leaves = jax.eval_shape(kinds, jax.ShapeDtypeStruct((), jnp.complex64))
        slots[name] = {slot: "leaf" if is_complex(x.dtype) else "real leaf" for slot, x in on_leaves.items()}
        slots[name] |= dict.fromkeys(scalars, "scalar")
        slots[name] |= {"state": "whole"} if rule.whole else {}
    return Layout(tuple(names), _nonempty(hyperparams), _nonempty(slots))


def _array(leaf: Any) -> jax.Array:
    """A leaf as an array of just the dtype it has, never a weak one."""
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _slots(rule: AbstractRule, param: jax.Array) -> Scalars:
    """The slots of a rule for one leaf, in the dtype they are kept in, and sharded as the parameter is."""
    slots = methods.slotted(rule, param)
    if rule.state_dtype is not None:
        slots = {slot: x if is_complex(x.dtype) else x.astype(rule.state_dtype) for slot, x in slots.items()}
    if isinstance(param, jax.core.Tracer):  # in jit, zeros like a parameter would not know of its sharding
        never = (param.real < 0) & (param.real > 0)  # but this does, and what is chosen by it
        return {slot: jnp.where(never, jnp.ones_like(x), x) for slot, x in slots.items()}
    return slots


def _owned(slots: Any, params: Sequence[jax.Array]) -> Any:
    """The same slots with a buffer for each: none is there twice, or is a parameter's, so that all can be donated."""
    taken = {_buffer(x) for x in params}

    def own(x: Any) -> Any:
        if not have_values(x):
            return x
        x = jnp.copy(x) if _buffer(x) in taken else x
        taken.add(_buffer(x))
        return x

    return jax.tree.map(own, slots)


def _buffer(x: jax.Array) -> int:
    """Where an array lies: two that are not the same may share it."""
    shards = [] if isinstance(x, jax.core.Tracer) or x.nbytes == 0 else x.addressable_shards
    return shards[0].data.unsafe_buffer_pointer() if shards else id(x)


def _with_complements(own: Scalars, rule: AbstractRule) -> Scalars:
    """The hyperparameters of a rule, and the complements of those that are below 1."""
    values = {name: own[name] for name in rule.hyperparameters()}
    return values | {given: complement(own, name) for name, given in rule.complements().items()}


def _scalar(value: Any, name: str, limits: Limits, dtype: Any) -> Any:
    """A hyperparameter, within its limits where the value is known; then it is a copy, in float64."""
    what = f"gradtx: hyperparameter {name}"
    known = not isinstance(value, jax.core.Tracer)
    number = checked(what, value, limits, dtype) if known else jnp.asarray(value)
    if number.shape != ():
        raise ValueError(
            f"{what} has shape {number.shape}; it must be a scalar. To try several values at once, use jax.vmap; for "
            "one value per leaf, use one chain per group of leaves."
        )
    return number


def _nonempty(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: own for name, own in tree.items() if own}
