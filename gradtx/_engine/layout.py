"""The state of a chain: its keys, what a leaf's slots are at the start, and whether a state is this chain's."""

from __future__ import annotations

import enum
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from gradtx._core import methods
from gradtx._core.codecs import check_blocks, is_encoded, stored
from gradtx._core.contract import AbstractRule
from gradtx._core.dataflow import never
from gradtx._core.numerics import is_complex, without_residuals
from gradtx._core.state import ChainState, PackedState
from gradtx._engine.checks import check_counts, check_kind, difference
from gradtx._engine.inputs import Inputs


class Kind(enum.Enum):
    """The shape of a slot: an array for each leaf, complex where the leaf is or always real; a number; any tree."""

    LEAF = enum.auto()
    REAL_LEAF = enum.auto()
    SCALAR = enum.auto()
    TREE = enum.auto()

    @property
    def of_leaf(self) -> bool:
        """True if there is one array for each leaf."""
        return self in (Kind.LEAF, Kind.REAL_LEAF)


class Layout(NamedTuple):
    """The keys of a chain's state, and the kind of each slot.

    Attributes:
        names: of the rules.
        hyperparams: per rule, the names of its hyperparameters.
        slots: per rule, the kinds of its slots by their names.
    """

    names: tuple[str, ...]
    hyperparams: dict[str, tuple[str, ...]]
    slots: dict[str, dict[str, Kind]]

    def leaf_slots(self, rule: str) -> list[str]:
        """The slots of a rule that hold one array per leaf."""
        return [slot for slot, kind in self.slots.get(rule, {}).items() if kind.of_leaf]

    def read(self, state: Any, inputs: Inputs) -> list[Any]:
        """The slots of each rule, {slot: one array per leaf}, of a state that comes from this chain, for these leaves.

        Raises:
            TypeError, ValueError: for another state.
        """
        if not isinstance(state, ChainState):
            hint = "unpack_state unpacks it." if isinstance(state, PackedState) else ""
            raise TypeError(
                f"gradtx: update needs the ChainState that init of this chain returned, found {type(state).__name__}. "
                f"{hint or 'The arguments are update(updates, state, params).'}"
            )
        named = {rule: without_residuals(values) for rule, values in state.hyperparams.items()}
        keys = _keys("hyperparams", named) | _keys("slots", state.slots)
        expected = _keys("hyperparams", self.hyperparams) | _keys("slots", self.slots)
        if keys != expected:
            raise ValueError(
                f"gradtx: this state was made by another chain{difference(keys, expected)}. Call init of this chain."
            )
        check_counts("gradtx", count=state.count)
        for rule, values in state.hyperparams.items():
            for name, value in values.items():
                check_kind(f"hyperparameter {rule}.{name}", value, "floating")
        return [
            self._slots(name, state.slots.get(name, {}), inputs, acts_on)
            for name, acts_on in zip(self.names, inputs.mask, strict=True)
        ]

    def _slots(self, rule: str, slots: Mapping[str, Any], inputs: Inputs, acts_on: Sequence[bool]) -> dict[str, Any]:
        of_leaves = {}
        for slot, kind in self.slots.get(rule, {}).items():
            what = f"slot {rule}.{slot}"
            if kind.of_leaf:
                arrays = of_leaves[slot] = inputs.like(slots[slot], f"slots {rule}.{slot}", acts_on)
                allowed = "floating or complex" if kind is Kind.LEAF else "floating"
                for (path, _), value in zip(inputs.named, arrays, strict=True):
                    if value is not None:
                        check_kind(f"{what}, leaf {path!r},", value, allowed)
                    if is_encoded(value):
                        check_blocks(value, f"{what}, leaf {path!r}")
                if kind is Kind.LEAF:
                    inputs.check_complex(arrays, what)
            elif kind is Kind.SCALAR:
                check_kind(what, slots[slot], "floating", shape=())
        return of_leaves


def layout_of(rules: Sequence[AbstractRule], names: Sequence[str]) -> Layout:
    """The layout of the state of rules with these names."""
    hyperparams, slots = {}, {}
    for name, rule in zip(names, rules, strict=True):
        hyperparams[name] = tuple(rule.hyperparameters())
        scalars = methods.numbered(rule)
        kinds = functools.partial(methods.slotted, rule, kinds_alone=True)
        on_leaves = jax.eval_shape(kinds, jax.ShapeDtypeStruct((), jnp.complex64))
        slots[name] = {slot: Kind.LEAF if is_complex(x.dtype) else Kind.REAL_LEAF for slot, x in on_leaves.items()}
        slots[name] |= dict.fromkeys(scalars, Kind.SCALAR)
        slots[name] |= {"state": Kind.TREE} if rule.holds_tree else {}
    return Layout(tuple(names), nonempty(hyperparams), nonempty(slots))


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


def first_slots(rule: AbstractRule, param: jax.Array, storage: Any, name: str, path: str) -> dict[str, Any]:
    """The slots of a rule for one leaf at the start, in the format they are stored in, and sharded as the parameter.

    Args:
        rule: whose slots.
        param: the leaf.
        storage: the format.
        name, path: of the rule and of the leaf, for errors.
    """
    slots = methods.slotted(rule, param)
    if isinstance(param, jax.core.Tracer):  # in jit, zeros like a parameter would not know of its sharding
        slots = _sharded_as(param, slots)

    def one(slot: str, x: Any) -> Any:
        return stored(x, storage, slot in rule.nonnegative, f"slot {name}.{slot}, leaf {path!r}")

    return {slot: one(slot, x) for slot, x in slots.items()}


@jax.jit  # traced once for all leaves that are alike, one equation for each
def _sharded_as(param: jax.Array, slots: dict[str, Any]) -> dict[str, Any]:
    """The slots through a comparison of the parameter, whose sharding a selection by it has."""
    return {slot: jnp.where(never(param), jnp.ones_like(x), x) for slot, x in slots.items()}


def with_buffers(slots: Any, params: Sequence[jax.Array]) -> Any:
    """The same slots with a buffer for each: none is there twice, or is a parameter's, so that all can be donated."""
    taken = {_buffer(x) for x in params}

    def one(x: Any) -> Any:
        if not have_values(x):
            return x
        x = jnp.copy(x) if _buffer(x) in taken else x
        taken.add(_buffer(x))
        return x

    return jax.tree.map(one, slots)


def _buffer(x: jax.Array) -> int:
    """The address of an array: two that are not the same object may share it."""
    shards = [] if isinstance(x, jax.core.Tracer) or x.nbytes == 0 else x.addressable_shards
    return shards[0].data.unsafe_buffer_pointer() if shards else id(x)


def have_values(*trees: Any) -> bool:
    """True if all leaves are arrays that have values, as outside of ``jit`` and of what else traces."""
    return all(isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def nonempty(tree: dict[str, Any]) -> dict[str, Any]:
    """The entries that hold anything: a rule without slots has no entry in the state."""
    return {name: entry for name, entry in tree.items() if entry}


def _keys(what: str, tree: Mapping[str, Iterable[str]]) -> set[str]:
    return {f"{what}.{rule}.{name}" for rule, entry in tree.items() for name in entry}
