"""The engine of a chain: from trees to arrays and back, for every rule and every chain alike."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from gradtx._core import methods, selectors, verification
from gradtx._core.codecs import codec_of, formats
from gradtx._core.contract import AbstractRule
from gradtx._core.control import Once, either, kept
from gradtx._core.counts import incremented
from gradtx._core.mesh import like_parameters, spread_as, starts
from gradtx._core.numerics import added, compute_dtype, widest
from gradtx._core.state import ChainState, knowing
from gradtx._engine.backends import Executor, current
from gradtx._engine.checks import check_order, check_tree, dtype_of
from gradtx._engine.execute import Measured, Result, Work, execute, measured_first, survey, unchanged
from gradtx._engine.inputs import FlatTree, Inputs, Mask, array_of, has_no_gradient, is_number, masks, read
from gradtx._engine.layout import first_slots, have_values, layout_of, nonempty, unique_names, with_buffers
from gradtx._engine.plan import Buffer, Lane, Leaf, Place, Plan, plan
from gradtx._engine.scalars import NOTHING, Ahead, Scalars, StepScalars


class Engine:
    """Named rules that act on trees: the ``init`` and the ``run`` of a rule or a chain."""

    _checked: Any = None  # the types of trees that were found right

    def __init__(self, rules: Sequence[AbstractRule]):
        self.rules = tuple(rules)
        self.names = unique_names(self.rules)
        self.layout = layout_of(self.rules, self.names)
        self.scalars = Scalars(self.rules, self.names)
        self.known = tuple(self.scalars.declared())
        self.state_type = knowing(ChainState, self.known)
        self.asks = any(selectors.asks(rule.where) for rule in self.rules)
        self.blanks: Any = None  # see eager.blanks_of
        self._plain: tuple[Any, tuple[AbstractRule, ...]] | None = None

    def plain_rules(self) -> tuple[AbstractRule, ...]:
        """The rules, as they are written now, without the values of hyperparameters: equal for all such chains."""
        source = [rule.source() for rule in self.rules]
        if self._plain is None or self._plain[0] != source:
            self._plain = source, tuple(rule.blank() for rule in self.rules)
        return self._plain[1]

    def mask(self, tree: FlatTree) -> Mask:
        """For each rule, for each leaf, whether the rule acts on it."""
        return masks([rule.where for rule in self.rules], self.names, tree)

    def _storage(self, tree: FlatTree) -> list[list[Any]]:
        """For each rule, for each leaf, the format of its slots."""
        return [
            formats(rule.state_dtype, tree.named, tree.treedef, name)
            for rule, name in zip(self.rules, self.names, strict=True)
        ]

    def inputs(self, tree: Any, what: str = "parameters", params: Any = None) -> Inputs:
        """The updates or the parameters taken apart; see ``inputs.read``."""
        return read(tree, what, self.rules, self.names, self.mask, params)

    @starts
    def init(self, params: Any) -> ChainState:
        """The state before the first step."""
        inputs = self.inputs(params)
        inputs.check_real()
        self._check_rules(inputs)
        self._check_order(inputs)
        leaves = inputs.leaves
        arrays = [None if i in inputs.resting else jnp.asarray(x, compute_dtype(x)) for i, x in enumerate(leaves)]
        dtype = compute_dtype(*(x.real for x in arrays if x is not None))
        count = jnp.zeros((), jnp.int32)
        slots = {}
        storage = self._storage(inputs)
        for name, rule, acts_on, of_rule in zip(self.names, self.rules, inputs.mask, storage, strict=True):
            seen = [x if acts else None for x, acts in zip(arrays, acts_on, strict=True)]
            on_leaves = [
                None if x is None else first_slots(rule, x, one, name, path)
                for x, one, (path, _) in zip(seen, of_rule, inputs.named, strict=True)
            ]
            slots[name] = {
                slot: inputs.unflatten([None if one is None else one[slot] for one in on_leaves])
                for slot in self.layout.leaf_slots(name)
            }
            slots[name] |= {slot: jnp.asarray(value, dtype) for slot, value in rule.scalars().items()}
            if rule.holds_tree:
                for i in range(len(leaves)) if rule.takes_stored else inputs.resting:
                    seen[i] = leaves[i] if acts_on[i] else None
                tree = inputs.unflatten(seen)
                slots[name]["state"] = like_parameters(methods.started(rule, tree), tree)
        slots = with_buffers(slots, jax.tree.leaves(arrays))
        state = self.state_type(count, self.scalars.hyperparams(count, dtype, None), nonempty(slots))
        if any(rule.where is not None for rule in self.rules):
            self.scalars.of_step(state, inputs.groups)  # refuses an average that two groups of leaves need twice
        return state

    def run(
        self,
        updates: Any,
        state: ChainState,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
        ahead: Ahead = NOTHING,
        first: Measured | None = None,
        *,
        when: jax.Array | None = None,
    ) -> tuple[Any, ChainState]:
        """One step, operation by operation: updates in the dtypes of those that came in, or the parameters after it.

        Args:
            updates, state, params, extra: as for ``update``.
            apply_updates: whether the parameters are asked for.
            ahead: hyperparameters of the next step that rules ask for, where they are data.
            first: the measurement that the step begins with, where it is known (see ``measured_first``).
            when: a flag. Where it is false nothing changes, and updates are 0 (see ``takes_flag``).
        """
        work, scalars = self._work(updates, state, params, extra, apply_updates, ahead, first)
        work, inputs = work._replace(when=when), work.inputs
        traced = when is not None or not have_values(inputs.active(work.updates))
        out, slots, trees = self._executed(work, current(traced=traced))
        for i, rests in inputs.resting.items():
            param = work.params[i] if work.params else None
            update = rests.update(param)
            out[i] = _after(param, None if rests.frozen else update) if apply_updates else update
            if not has_no_gradient(out[i]):
                out[i] = kept(when, out[i], param if apply_updates else jnp.zeros_like(out[i]))
        if apply_updates and work.params:  # slots may be divided over an axis over which parameters are not
            out = [x if i in inputs.resting else _spread_as(x, work.params[i]) for i, x in enumerate(out)]
        trees_of = [{slot: inputs.unflatten(xs) for slot, xs in own.items()} for own in slots]
        after = {
            name: {slot: trees_of[r][slot] for slot in self.layout.leaf_slots(name)}
            | {slot: kept(when, x, state.slots[name][slot]) for slot, x in scalars.slots[r].items()}
            for r, name in enumerate(self.names)
        }
        for r, tree in trees.items():
            after[self.names[r]]["state"] = self.rules[r].with_slots(tree, trees_of[r]) if trees_of[r] else tree
        count = kept(when, incremented(state.count), state.count)
        hyperparams = kept(when, scalars.hyperparams, dict(state.hyperparams))
        return inputs.unflatten(out), self.state_type(count, hyperparams, nonempty(after))

    @property
    def takes_flag(self) -> bool:
        """True if ``run`` takes ``when``, and is better than a condition around it: here, where the kernel runs."""
        return current(traced=True).takes_flags and not any(rule.maps_trees for rule in self.rules)

    def measured_first(self, updates: Any, state: ChainState, params: Any) -> Measured | None:
        """The measurement that a step begins with, of the updates as they come in; None if it begins with none."""
        if not self.rules or self.rules[0].scope is None or self.rules[0].scales:
            return None
        work = self._arrays(updates, state, params, {}, apply_updates=False)
        return measured_first(work, current(traced=not have_values(work.inputs.active(work.updates))))

    def _executed(self, work: Work, executor: Executor) -> Result:
        """The step; where no observer takes numbers in it, without them.

        Each is under a condition of its own, the second with what the first has left: two branches of one condition
        would change the same arrays (see ``either``).
        """
        flags = [rule.due(work.trees[r]) for r, rule in enumerate(self.rules) if rule.observes]
        due = [flag for flag in flags if flag is not None]
        if not due or len(due) < len(flags) or work.is_packed:
            return execute(work, executor)
        flag = functools.reduce(jnp.logical_or, due)
        if not isinstance(flag, jax.core.Tracer):
            return execute(work, executor, observing=bool(flag))
        observed = Once(lambda: execute(work, executor))
        result = either(flag, observed, lambda: unchanged(work, observed.avals))
        return either(~flag, lambda: execute(work.after(result), executor, observing=False), lambda: result)

    def _work(
        self,
        updates: Any,
        state: ChainState,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
        ahead: Ahead = NOTHING,
        first: Measured | None = None,
    ) -> tuple[Work, StepScalars]:
        """A step that is ready to run, and its scalars."""
        arrays = self._arrays(updates, state, params, extra, apply_updates)
        scalars = self.scalars.of_step(state, arrays.inputs.groups, ahead)
        return arrays._replace(coefficients=scalars.coefficients, first=first), scalars

    def _arrays(self, updates: Any, state: ChainState, params: Any, extra: dict[str, Any], apply_updates: bool) -> Work:
        """A step that is ready but for its scalars."""
        inputs = self.inputs(updates, "updates", params)
        inputs.check_real()
        slots = self._slots(state, inputs)
        if apply_updates and params is None and inputs.named:
            raise ValueError("gradtx: step changes parameters, and found None: call step(tx, params, grads, state).")
        param_leaves = inputs.parameters(params)

        arrays = [x if i in inputs.resting else array_of(x) for i, x in enumerate(inputs.leaves)]
        stored = param_leaves and [x if i in inputs.resting else array_of(x) for i, x in enumerate(param_leaves)]
        trees = {r: state.slots[self.names[r]]["state"] for r, rule in enumerate(self.rules) if rule.holds_tree}
        self.check_trees(state, updates, params)
        how = self._plan(inputs, arrays, stored, slots, apply_updates)
        return Work(how, inputs, {}, arrays, stored, slots, trees, extra, state.count)

    def check_trees(self, state: ChainState, updates: Any, params: Any) -> None:
        """The trees that pure rules hold, beside those that they begin with; once for all of the same types.

        Raises:
            TypeError: for arrays that are no numbers where they were.
            ValueError: for arrays of other shapes.
        """
        held = [
            (name, rule) for name, rule in zip(self.names, self.rules, strict=True) if rule.holds_tree and rule.pure
        ]
        trees = [state.slots.get(name, {}).get("state") for name, _ in held]
        types = [(jnp.shape(x), dtype_of(x)) for x in jax.tree.leaves((trees, updates))]
        if not held or types == self._checked:
            return
        inputs = self.inputs(updates, "updates", params)
        arrays = [None if i in inputs.resting else array_of(x) for i, x in enumerate(inputs.leaves)]
        for (name, rule), tree in zip(held, trees, strict=True):
            if rule.blank() is rule:  # it cannot begin
                continue
            acts_on = inputs.mask[self.names.index(name)]
            leaves = [
                jax.ShapeDtypeStruct(x.shape, compute_dtype(x)) if acts and x is not None else None
                for x, acts in zip(arrays, acts_on, strict=True)
            ]
            started = jax.eval_shape(functools.partial(methods.started, rule), inputs.unflatten(leaves))
            check_tree(f"slot {name}.state", tree, started)
        self._checked = types

    def _slots(self, state: ChainState, inputs: Inputs) -> list[dict[str, Sequence[Any]]]:
        """For each rule the arrays of each leaf that a pass maps, by slot: those in the states of whole trees too."""
        slots = self.layout.read(state, inputs)
        for r, (name, rule) in enumerate(zip(self.names, self.rules, strict=True)):
            for slot, tree in (rule.slots_in(state.slots[name]["state"]) if rule.maps_slots else {}).items():
                slots[r][slot] = inputs.like(tree, f"slots {name}.{slot}", inputs.mask[r])
        return slots

    def after(self, state: ChainState, params: Any, steps: int) -> ChainState:
        """The state with its scalars as so many steps leave them: the clock, weights and schedules, and no other."""
        groups = self.inputs(params).groups
        named = list(zip(self.names, self.rules, strict=True))
        scalars = {name: {slot: state.slots[name][slot] for slot in rule.scalars()} for name, rule in named}

        def one(_: Any, state: ChainState) -> ChainState:
            after = self.scalars.of_step(state, groups)
            numbers = dict(zip(self.names, after.slots, strict=True))
            return ChainState(incremented(state.count), after.hyperparams, numbers)

        count, hyperparams, scalars = jax.lax.fori_loop(0, steps, one, state._replace(slots=scalars))
        slots = {name: state.slots.get(name, {}) | numbers for name, numbers in scalars.items()}
        return self.state_type(count, hyperparams, nonempty(slots))

    def plan(self, params: Any, state: ChainState, apply_updates: bool = False) -> Plan:
        """The plan of a step on leaves like these parameters; they may be abstract."""
        inputs = self.inputs(params)
        return self._plan(inputs, inputs.leaves, inputs.leaves, self._slots(state, inputs), apply_updates)

    def places(self, params: Any, state: ChainState, apply_updates: bool = False) -> list[Place]:
        """The place where each pass of the plan would run; the parameters may be abstract."""
        places: list[Place] = []
        jax.eval_shape(lambda p, s: places.extend(survey(self._work(p, s, p, {}, apply_updates)[0])), params, state)
        return places

    def _plan(
        self,
        inputs: Inputs,
        arrays: Sequence[Any],
        params: Sequence[Any] | None,
        slots: Sequence[dict[str, Sequence[Any]]],
        apply_updates: bool,
    ) -> Plan:
        known: list[Leaf | None] = []
        storage = self._storage(inputs)
        for i, x in enumerate(arrays):
            if i in inputs.resting and not inputs.resting[i].computed:
                known.append(None)
                continue
            members = tuple(acts_on[i] for acts_on in inputs.mask)
            stored = tuple(
                tuple((slot, xs[i].dtype, codec_of(xs[i], of_rule[i])) for slot, xs in own.items()) if acts else ()
                for own, acts, of_rule in zip(slots, members, storage, strict=True)
            )
            param = None if params is None else Buffer(Lane.PARAM, params[i].dtype, codec_of(params[i], None))
            of_slots = (dtype for _, dtype, _ in itertools.chain(*stored))
            dtype = widest(x.dtype, *([] if param is None else [param.dtype]), *of_slots)
            update = x.dtype if param is None or param.codec is None else widest(x.dtype)
            known.append(Leaf(members, x.shape, dtype, x.dtype, update, param, stored))
        return plan(self.plain_rules(), known, apply_updates)

    def _check_rules(self, inputs: Inputs) -> None:
        """Each rule by itself, on one of the leaves that it acts on."""
        for rule, acts_on in zip(self.rules, inputs.mask, strict=True):
            acted_on = (x for x, acts in zip(inputs.leaves, acts_on, strict=True) if acts and is_number(x))
            if (leaf := next(acted_on, None)) is not None:
                verification.check(rule, jax.ShapeDtypeStruct(jnp.shape(leaf), compute_dtype(leaf)))

    def _check_order(self, inputs: Inputs) -> None:
        """The order of the rules, for each group of leaves that the same rules act on."""
        for members, positions in inputs.groups.items():
            acting = [r for r, acts in enumerate(members) if acts]
            leaf = "" if len(acting) == len(self.rules) else f", for leaf {inputs.named[positions[0]][0]!r}"
            check_order([self.rules[r] for r in acting], [self.names[r] for r in acting], leaf)


def _spread_as(x: Any, like: Any) -> Any:
    """The arrays of a parameter over explicit axes of a mesh as they were."""
    return jax.tree.map(lambda x, like: spread_as(x, jax.typeof(like)), x, like)


def applied(params: Any, updates: Any) -> Any:
    """The parameters after ``optax.apply_updates``; those without an update stay, and integers stay exact."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(_after, leaves, treedef.flatten_up_to(updates)))


def _after(param: Any, update: Any) -> Any:
    if has_no_gradient(update):
        return param
    if is_number(param):
        param = jnp.asarray(param)
        return spread_as(added(param, jnp.asarray(update)), jax.typeof(param))
    return param + jnp.asarray(update, jnp.result_type(param))
