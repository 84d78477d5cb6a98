"""The state of another chain, to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core.numerics import residual_of, without_residuals
from gradtx._core.state import ChainState, PackedState
from gradtx._core.walk import check_state, rebuilt, walk
from gradtx._inspect.monitor import MonitorState, as_trees, as_vectors
from gradtx._states.leaves import carried_leaf
from gradtx._states.nodes import Table, are_same, has_state, is_node, is_state, joined_path, nodes_of
from gradtx._states.report import MigrationReport, empty_report, extend
from gradtx._wrappers.packed import PackedSlot
from gradtx._wrappers.partition import PartitionState
from gradtx._wrappers.switch import SwitchState


def migrate(
    state: Any,
    tx: optax.GradientTransformation,
    params: Any,
    rename: Mapping[str, str] | None = None,
    hyperparams: bool = False,
    keep_rows: bool = False,
) -> tuple[Any, MigrationReport]:
    """The state of a chain with all that another chain's state can give; the rest starts fresh, and a report says why.

    Args:
        state: of another chain, or of this one for other parameters.
        tx: the transformation to go on with.
        params: the parameters to go on with.
        rename: ``{"old_rule": "new_rule"}`` or ``{"old_rule.slot": "new_rule.slot"}``, where names differ.
        hyperparams: whether hyperparameters of the same name are carried too. False, the default: they are those
            that ``tx`` was built with, since who writes ``adam(3e-4)`` means 3e-4. The report lists where they differ.
            Scheduled ones are their schedule's either way.
        keep_rows: whether a leaf that has more or fewer rows than it had, and is the same otherwise, keeps those that
            both have, as an embedding of a vocabulary that grew should. False: it starts fresh.

    Returns:
        The new state and a ``MigrationReport``.

    Slots are carried by the names of rule and slot, leaf by leaf, by the leaf's path, if its shape is the same and both
    are real or both complex; floating dtypes are cast. The slots of a rule belong together, an average and its weight:
    where one is missing, all start fresh. Numbers are carried as they are: of an average renamed to a heavy ball the
    scale differs, which ``switch`` converts. The count is carried. The new state shares arrays with the old one: once
    one of them is donated, the other is gone.

    **Some leaves of a rule fresh, others carried**, as for a new head: the weight of an average is one number for all
    leaves, so ``debias`` does not help the fresh ones. They start at zero under a full weight, and for a constant
    gradient the steps of Adam are (1−b1ᵗ)/√(1−b2ᵗ) times too long, 3.2 at first and 6.6 at most. A ``partition`` with
    a part of their own avoids it.

    Wrappers of the same type are carried field by field. Into or out of another one, the chain within is carried, if it
    is the only one on both sides: an Adam goes into a ``skip_nonfinite`` of Adam and back. Into a ``switch`` it goes
    as its first phase, and the steps until the switch are counted anew; out of one goes the phase that is on.

    From a chain into a ``partition`` each part takes what its leaves had, and out of one, or into one of other parts, a
    rule takes from all parts that have it, if their weights are the same. A ``packed`` state is carried leaf by leaf as
    any other.

    Raises:
        ValueError: for a state that is stacked, as under ``jax.vmap``; if ``rename`` names something that is not there,
            or two things the same.

    >>> import gradtx, jax.numpy as jnp
    >>> params = jnp.zeros(2)
    >>> state = gradtx.adam(0.1).init(params)._replace(count=jnp.array(7))
    >>> state, report = gradtx.migrate(state, gradtx.amsgrad(0.01), params)
    >>> print(report)
    kept:
      count: 7
      momentum.m
      momentum.weight
      rms.s
      rms.weight
    fresh:
      max_v.s: not in the old state
      scale_by_learning_rate.learning_rate: 0.01 as given, 0.1 in the old state
    dropped:
    """
    check_state("migrate", state)
    report = empty_report()
    stacked = next((chain.count for chain in _chains(state) if jnp.ndim(chain.count)), None)
    if stacked is not None:
        raise ValueError(
            f"migrate: this state is stacked: its count has shape {jnp.shape(stacked)}. Take one member of it, "
            "jax.tree.map(lambda x: x[i], state), and stack what becomes of each again."
        )
    new = tx.init(params)
    rename = dict(rename or {})
    _check_rename(rename, _chains(state, within=True), _chains(new, within=True))
    old, new = (rebuilt(each, MonitorState, as_trees) for each in (state, new))
    carried = _Migration(rename, hyperparams, keep_rows).carry(old, new, "", report)
    return rebuilt(carried, MonitorState, as_vectors), report


class _Migration(NamedTuple):
    rename: dict[str, str]
    hyperparams: bool
    keep_rows: bool

    def carry(self, old: Any, new: Any, at: str, report: MigrationReport) -> Any:
        """The new state with what the old one gives."""
        if isinstance(new, _CHAINS) and isinstance(old, _CHAINS):
            return self._carry_chain(old, new, at, report)
        if isinstance(new, PartitionState) and isinstance(old, PartitionState) and old.parts.keys() != new.parts.keys():
            return self._carry_parts(old, new, at, report)
        if is_state(new) and type(old) is type(new):
            apart = _WEIGHED if _weighs(old) != _weighs(new) else ()
            report.fresh.update({joined_path(at, field): "only one of the two states has weights" for field in apart})
            fields = zip(new._fields, old, new, strict=True)
            values: list[Any] = [
                x if field in apart else self.carry(before, x, joined_path(at, field), report)
                for field, before, x in fields
            ]
            return type(new)(*values)
        if is_state(new) or is_state(old):
            return self._carry_the_only_chain(old, new, at, report)
        olds = dict(nodes_of(old))
        nodes = []
        for path, node in nodes_of(new):
            where = joined_path(at, path)
            if path not in olds:
                report.fresh[where] = "not in the old state"
                nodes.append(node)
            elif is_state(node) or is_state(olds[path]):
                nodes.append(self.carry(olds.pop(path), node, where, report))
            else:
                nodes.append(carried_leaf(olds.pop(path), node, where, report, self.keep_rows))
        report.dropped.update({joined_path(at, path): "not in the new state" for path in olds})
        if isinstance(new, PackedSlot):
            return new.with_arrays(dict(zip(new.by_keys(), nodes, strict=True)))
        return jax.tree.unflatten(jax.tree.structure(new, is_leaf=is_node(new)), nodes)

    def _carry_the_only_chain(self, old: Any, new: Any, at: str, report: MigrationReport) -> Any:
        """Between states of different types."""
        news, olds = _cores(new), _cores(old)
        kinds = f"{type(old).__name__} in the old state, {type(new).__name__} here"
        if len(news) != 1 or len(olds) != 1:
            report.fresh[at or "all"] = kinds
            report.dropped[at or "all"] = kinds
            return new
        for state, entries in ((new, report.fresh), (old, report.dropped)):
            switches = isinstance(news[0], SwitchState) and isinstance(olds[0], SwitchState)
            if not isinstance(state, _CORES) and not (switches and isinstance(state, SwitchState)):
                within = "phase that is on" if isinstance(state, SwitchState) else "chain within"
                entries[joined_path(at, type(state).__name__)] = f"{kinds}; only the {within} is carried"
        carried = self._carry_core(olds[0], news[0], at, report)
        return rebuilt(new, (*_CORES, SwitchState), lambda _: carried)

    def _carry_core(self, old: Any, new: Any, at: str, report: MigrationReport) -> Any:
        """Between chains, partitions and switches: into the first phase of one, and out of the phase that is on."""
        if isinstance(old, SwitchState) and isinstance(new, SwitchState):
            return self.carry(old, new, at, report)
        if isinstance(old, SwitchState):
            return self.carry(old.then if old.switched else old.first, new, at, report)
        if isinstance(new, SwitchState):
            return new._replace(first=self.carry(old, new.first, joined_path(at, "first"), report))
        either_parts = isinstance(old, PartitionState) or isinstance(new, PartitionState)
        return (self._carry_parts if either_parts else self._carry_chain)(old, new, at, report)

    def _carry_parts(self, old: Any, new: Any, at: str, report: MigrationReport) -> Any:
        """Between chains and partitions, or partitions of other parts: leaf by leaf."""
        chain = _joined(old, at, report) if isinstance(old, PartitionState) else old
        if not isinstance(new, PartitionState):
            return self._carry_chain(chain, new, at, report)
        parts, dropped = {}, []
        for part, state in new.parts.items():
            cores, inside = _cores(state), empty_report()
            if len(cores) != 1 or not isinstance(cores[0], _CHAINS):
                report.fresh[joined_path(at, "parts", part)] = "no chain, and no wrapper of one"
                parts[part] = state
                continue
            carried = self._carry_chain(chain, cores[0], "", inside)
            parts[part] = rebuilt(state, _CHAINS, lambda _, carried=carried: carried)
            for entries, more in ((report.kept, inside.kept), (report.fresh, inside.fresh)):
                entries.update({joined_path(at, "parts", part, name): note for name, note in more.items()})
            dropped.append(_by_leaf(inside.dropped, chain))
        by_all = [name for name in dropped[0] if all(name in names for names in dropped)] if dropped else []
        report.dropped.update({joined_path(at, name): "no part takes it" for name in by_all})
        return PartitionState(parts)

    def _carry_chain(self, old: Any, new: Any, at: str, report: MigrationReport) -> Any:
        report.kept[joined_path(at, "count")] = str(old.count)
        old_slots = self._renamed(old.slots)
        slots = {
            rule: self._carry_rule(old_slots, rule, new_slots, at, report) for rule, new_slots in new.slots.items()
        }
        expected = {f"{rule}.{slot}" for rule, new_slots in new.slots.items() for slot in new_slots}
        for name, (old_name, _) in old_slots.items():
            if name not in expected:
                report.dropped[joined_path(at, old_name)] = "no such slot in the new state"
        hyperparams = self._carry_hyperparams(old, new, at, report)
        return new._replace(count=jnp.asarray(old.count), hyperparams=hyperparams, slots=slots)

    def _carry_rule(
        self, old: dict[str, Any], rule: str, new: dict[str, Any], at: str, report: MigrationReport
    ) -> dict[str, Any]:
        """The slots of one rule: all of them, or none."""
        missing = [slot for slot in new if f"{rule}.{slot}" not in old]
        trial, slots = empty_report(), {}
        for slot in new if not missing else ():
            old_name, tree = old[f"{rule}.{slot}"]
            slots[slot], of_slot = self._carry_slot(old_name, tree, new[slot], f"{rule}.{slot}", at)
            if not of_slot.kept and jax.tree.leaves(new[slot]):
                missing.append(slot)
            extend(trial, of_slot)
        if not missing:
            extend(report, trial)
            return slots
        for slot in new:
            name = joined_path(at, f"{rule}.{slot}")
            if slot not in missing:
                report.fresh[name] = f"belongs to {rule}.{missing[0]}, which is fresh"
            elif f"{rule}.{slot}" not in old:
                report.fresh[name] = "not in the old state"
            else:
                reasons = {
                    path: why for path, why in trial.fresh.items() if path == name or path.startswith(f"{name}/")
                }
                report.fresh.update(reasons or {name: "nothing in it fits"})
            if f"{rule}.{slot}" in old:
                report.dropped[joined_path(at, old[f"{rule}.{slot}"][0])] = f"{rule} starts fresh"
        return new

    def _carry_slot(self, old_name: str, old: Any, new: Any, name: str, at: str) -> tuple[Any, MigrationReport]:
        """One slot, and what was done to it: in one line, if all of it is kept as it is."""
        report = empty_report()
        slot = self.carry(old, new, joined_path(at, name), report)
        unchanged = not report.fresh and not report.dropped and not any(report.kept.values())
        if unchanged and not has_state(new):
            report.kept.clear()
            report.kept[joined_path(at, name)] = ""
        if old_name != name:
            report.kept.update({path: f"{note and note + ', '}from {old_name}" for path, note in report.kept.items()})
        return slot, report

    def _carry_hyperparams(
        self, old: Any, new: Any, at: str, report: MigrationReport
    ) -> dict[str, dict[str, jax.Array]]:
        old_values = self._renamed(old.hyperparams)
        carried = {rule: dict(values) for rule, values in new.hyperparams.items()}
        for rule, values in new.hyperparams.items():
            for name, value in without_residuals(values).items():
                _, before = old_values.get(f"{rule}.{name}", ("", value))
                before = jnp.asarray(before, value.dtype)
                if np.array_equal(before, value):
                    continue
                if self.hyperparams:
                    carried[rule][name] = before
                    if (residual := residual_of(name)) in values:
                        _, lost = old_values.get(f"{rule}.{residual}", ("", 0))
                        carried[rule][residual] = jnp.asarray(lost, value.dtype)
                    report.kept[joined_path(at, f"{rule}.{name}")] = f"{before:g}, instead of {value:g} as given"
                else:
                    report.fresh[joined_path(at, f"{rule}.{name}")] = f"{value:g} as given, {before:g} in the old state"
        return carried

    def _renamed(self, tree: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, Any]]:
        """``{new rule.slot: (old rule.slot, what it holds)}``."""
        renamed: dict[str, tuple[str, Any]] = {}
        for rule, values in tree.items():
            for slot, value in values.items():
                old = f"{rule}.{slot}"
                name = self.rename.get(old, f"{self.rename.get(rule, rule)}.{slot}")
                if name in renamed:
                    raise ValueError(
                        f"migrate: both {renamed[name][0]!r} and {old!r} would become {name!r}; see rename"
                    )
                renamed[name] = old, value
        return renamed


def _joined(old: PartitionState, at: str, report: MigrationReport) -> ChainState:
    """The chains of all parts as one: of each rule the leaves of all, where what is not a leaf's is the same in all."""
    chains = {
        part: cores[0]
        for part, state in old.parts.items()
        if len(cores := _cores(state)) == 1 and isinstance(cores[0], _CHAINS)
    }
    slots: dict[str, Any] = {}
    hyperparams: dict[str, Any] = {}
    for rule in dict.fromkeys(rule for chain in chains.values() for rule in (*chain.slots, *chain.hyperparams)):
        holders = {part: chain.slots[rule] for part, chain in chains.items() if rule in chain.slots}
        tables: dict[str, Table] = {}
        agree = True
        for slots_of_part in holders.values():
            for slot, tree in slots_of_part.items():
                table = tables.setdefault(slot, Table())
                for path, node in nodes_of(tree):
                    agree = agree and (path not in table or are_same(table[path], node))
                    table[path] = node
        if agree and tables:
            slots[rule] = tables
        elif tables:
            report.dropped[joined_path(at, rule)] = f"the parts {', '.join(holders)} have other weights"
        hyperparams[rule] = next((c.hyperparams[rule] for c in chains.values() if rule in c.hyperparams), {})
    counts = [int(chain.count) for chain in chains.values()]
    if len(set(counts)) > 1:
        report.kept[joined_path(at, "count of the parts")] = f"{sorted(counts)}, the largest"
    return ChainState(jnp.asarray(max(counts, default=0), jnp.int32), hyperparams, slots)


def _by_leaf(dropped: Iterable[str], chain: Any) -> list[str]:
    """The names of what was dropped, of each leaf where it was a whole slot."""
    paths = {f"{rule}.{slot}": nodes_of(tree) for rule, slots in chain.slots.items() for slot, tree in slots.items()}
    return [joined_path(name, path) for name in dropped for path, _ in paths.get(name, [("", None)])]


def _check_rename(rename: Mapping[str, str], olds: list[Any], news: list[Any]) -> None:
    sources, targets = _names(olds), _names(news)
    for old, new in rename.items():
        if old not in sources or new not in targets:
            name, names, side = (old, sources, "old") if old not in sources else (new, targets, "new")
            raise ValueError(f"migrate: rename: no {name!r} in the {side} state, which has: {', '.join(sorted(names))}")
        if sources[old] != targets[new]:
            raise ValueError(f"migrate: rename: {old!r} is a {sources[old]}, {new!r} is a {targets[new]}")


def _names(chains: Iterable[Any]) -> dict[str, str]:
    names = {}
    for state in chains:
        named = [(rule, without_residuals(values)) for rule, values in state.hyperparams.items()]
        for rule, values in [*named, *state.slots.items()]:
            names |= {rule: "rule"} | {f"{rule}.{name}": "part of a rule" for name in values}
    return names


def _chains(tree: Any, within: bool = False) -> list[Any]:
    """The outermost chains' states; with ``within``, those in their slots too."""
    return [state for _, state in walk(tree, _CHAINS, within)]


def _cores(tree: Any) -> list[Any]:
    """The outermost states of chains, partitions and switches."""
    return [state for _, state in walk(tree, (*_CORES, SwitchState), within=False)]


_CHAINS = (ChainState, PackedState)


_CORES = (*_CHAINS, PartitionState)


_WEIGHED = ("sums", "held", "weight")
"""The fields of an ``AccumulateState`` that mean something else where micro-batches are weighed."""


def _weighs(state: Any) -> bool:
    return getattr(state, "weight", None) is not None
