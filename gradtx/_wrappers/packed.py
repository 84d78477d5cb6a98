"""Packed state: the slots of small leaves stand one after another in few flat arrays."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._chain import Chain
from gradtx._core.codecs import is_encoded
from gradtx._core.mesh import is_split, puts_constants, starts, varying
from gradtx._core.selectors import Leaves, flatten_with_keys
from gradtx._core.state import ChainState, PackedState, knowing, known_to
from gradtx._core.walk import word
from gradtx._engine.checks import check_on_device, difference
from gradtx._engine.eager import stepped
from gradtx._engine.engine import Engine
from gradtx._engine.inputs import FlatTree, filled, leaves_like
from gradtx._engine.layout import Layout
from gradtx._engine.scalars import NOTHING, Ahead
from gradtx._wrappers.base import Wrapper
from gradtx.native._primitive import LEAVES_PER_CALL
from gradtx.native._views import View, as_array, join, split
from gradtx.rules.base import Rule

__all__ = ["pack_state", "packed", "unpack_state"]

BELOW = 2**20
"""Elements. Packing 128 leaves of 100,000 takes a tenth off a step; of leaves of a million, handing over is 2 %."""

Keys = tuple[str, ...]
"""A path, key by key."""


@dataclass(frozen=True)
class Packing:
    """The leaves that are packed, and their paths: part of the structure of a state.

    Attributes:
        groups: the leaves, by position, whose slots stand in one flat array for each slot.
        keys: the path of each leaf of the parameters.
        shapes: the shape of each.
    """

    groups: tuple[tuple[int, ...], ...]
    keys: tuple[Keys, ...]
    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def _hash(self) -> int:  # once, and not in each call of what is compiled for it
        return hash((self.groups, self.keys, self.shapes))

    def __hash__(self) -> int:
        return self._hash

    def check(self, leaves: Leaves) -> None:
        """Refuses parameters of other paths or shapes."""
        ours = {"/".join(keys): shape for keys, shape in zip(self.keys, self.shapes, strict=True)}
        theirs = {path: tuple(jnp.shape(leaf)) for path, leaf in leaves}
        if ours != theirs or [*ours] != [*theirs]:
            shapes = [
                f"leaf {path!r} had shape {shape}, and has {theirs[path]}"
                for path, shape in ours.items()
                if theirs.get(path, shape) != shape
            ]
            raise ValueError(
                f"packed: this state was made for other parameters{difference(ours, theirs)}: "
                f"{'; '.join(shapes[:5]) or 'their leaves are not the same'}. See migrate."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedSlot:
    """One slot of all leaves.

    Attributes:
        leaves: a tree like the parameters, None for leaves that are packed or that the rule does not act on.
        flat: for each group the arrays of its leaves as one; None where the rule does not act.
        packing: static, the same for all slots of a state.
    """

    leaves: Any
    flat: tuple[jax.Array | None, ...]
    packing: Packing = field(metadata={"static": True})

    def by_keys(self) -> dict[Keys, Any]:
        """The arrays of all leaves that the rule acts on, by their paths; packed ones in numpy, if not traced."""
        found = {tuple(map(word, keys)): leaf for keys, leaf in flatten_with_keys(self.leaves)[0]}
        for group, flat in zip(self.packing.groups, self.flat, strict=True):
            if flat is None:
                continue
            offset = 0
            for i in group:
                shape = self.packing.shapes[i]
                found[self.packing.keys[i]] = _part(flat, offset, shape)
                offset += math.prod(shape)
        return found

    def by_path(self) -> dict[str, Any]:
        """The same by the paths in words."""
        return {"/".join(keys): leaf for keys, leaf in self.by_keys().items()}

    def with_arrays(self, arrays: Mapping[Keys, Any]) -> PackedSlot:
        """The same slot of other arrays."""
        leaves, treedef = flatten_with_keys(self.leaves)
        kept = treedef.unflatten([arrays[tuple(map(word, keys))] for keys, _ in leaves])
        flat = [
            None if old is None else jnp.concatenate([jnp.ravel(arrays[self.packing.keys[i]]) for i in group])
            for group, old in zip(self.packing.groups, self.flat, strict=True)
        ]
        return PackedSlot(kept, tuple(flat), self.packing)


def _part(flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
    if isinstance(flat, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, flat.dtype)
    values = flat if isinstance(flat, jax.core.Tracer) else np.asarray(flat)
    return values[offset : offset + math.prod(shape)].reshape(shape)


class packed(Wrapper[PackedState]):
    """The same optimizer with the slots of small leaves in few flat arrays, so that ``jit`` hands over few buffers.

    A step of a thousand small leaves takes most of its time, and nearly all of its compilation, for handing over
    buffers: parameters, gradients, and for Adam two moments for each parameter. Packed, the moments of up to 64 leaves
    are one buffer each. The compiled kernel reads and writes them where they are, and trajectories are the same to the
    bit; in the reference, XLA compiles what is cut out of a flat array differently, and they are the same to rounding.

    Args:
        tx: a gradtx chain or rule.
        below: leaves of fewer elements are packed; the slots of the others stay as they are.

    State: ``PackedState``, with the count, the hyperparameters and the names of ``tx``, so that ``set_hyperparams``
    works as ever. ``unpack_state`` gives the state that ``tx`` would have, for checkpoints and to look at, and
    ``pack_state`` takes it back.

    It is for many small leaves on the CPU. Where the kernel does not run (see ``executor``; ``vmap`` and derivatives
    too) leaves are cut out of the flat arrays and put back, which is right and slow. Over several devices packing
    would gather what is packed: ``init`` refuses parameters that are spread over devices. In ``jit`` it sees that on
    explicit axes of a mesh only, and inside of ``shard_map`` by their types, and leaves them out.

    Inf and NaN: what ``tx`` does.

    Raises:
        TypeError: if ``tx`` is no gradtx chain or rule; in ``update``, for a state that ``init`` did not make.
        ValueError: for ``below`` less than 0; in ``init``, for parameters that are spread over devices and would be
            packed; in ``update``, for a state of other parameters or another chain.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.packed(gradtx.adam(0.1))
    >>> params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3)}
    >>> params, state = gradtx.step(tx, params, params, tx.init(params))
    >>> print(params["b"])
    [0.9 0.9 0.9]
    >>> [x.shape for x in state.slots["momentum"]["m"].flat]
    [(7,)]
    """

    tx: Any
    below: int = BELOW

    def __post_init__(self):
        if not isinstance(self.tx, Chain | Rule):
            raise TypeError(f"packed: tx must be a gradtx chain or rule, found {self.tx!r}")
        if not isinstance(self.below, int) or isinstance(self.below, bool) or self.below < 0:
            raise ValueError(f"packed: below must be an integer, 0 or more, found {self.below!r}")

    def _members(self, state: PackedState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state)}

    @starts
    def init(self, params: Any) -> PackedState:
        """The state before the first step."""
        return pack_state(self, self.tx.init(params), params)

    @puts_constants
    def run(
        self, updates: Any, state: PackedState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, PackedState]:
        """One step: updates to add to the parameters, or the parameters after it, and the next state."""
        return stepped(self.tx._engine, _Steps, updates, state, params, extra, apply_updates)

    @property
    def takes_flag(self) -> bool:
        """True if ``tx`` does."""
        return self.tx.takes_flag

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: PackedState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, PackedState]:
        """One step where a flag is true."""
        return stepped(self.tx._engine, _Steps, updates, state, params, extra, apply_updates, when)


@dataclass(frozen=True)
class _Steps:
    """Steps of a chain on its packed state."""

    engine: Engine

    def run(
        self,
        updates: Any,
        state: PackedState,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
        ahead: Ahead = NOTHING,
        *,
        when: jax.Array | None = None,
    ) -> tuple[Any, PackedState]:
        """One step, operation by operation: updates, or with ``apply_updates`` the parameters, and the next state."""
        tree = FlatTree.of(filled(updates, params)[0], "updates")
        in_parts, packing = _in_parts(state, tree)
        out, after = self.engine.run(updates, in_parts, params, extra, apply_updates, ahead, when=when)
        return out, _packed(after, self.engine.layout, tree.treedef, packing)


def pack_state(tx: packed, state: ChainState, params: Any) -> PackedState:
    """The state of a chain, packed; the inverse of ``unpack_state``, to the bit.

    Args:
        tx: what is to go on with it.
        state: that ``tx.tx`` made, or ``unpack_state``.
        params: the parameters; only their shapes and dtypes matter.

    Raises:
        TypeError: if ``tx`` is no ``packed``, or ``state`` no ``ChainState``.
        ValueError: for a state of other parameters or another chain.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = [jnp.ones(2), jnp.ones(3)], gradtx.packed(gradtx.momentum())
    >>> print(gradtx.pack_state(tx, tx.tx.init(params), params).slots["momentum"]["m"].flat[0])
    [0. 0. 0. 0. 0.]
    """
    engine = _chain_of(tx)._engine
    inputs = engine.inputs(params)
    slots = engine.layout.read(state, inputs)
    alike: dict[Any, list[int]] = {}  # leaves that differ in their key are not worked on in one call of the kernel
    for i, leaf in enumerate(inputs.leaves):
        stored = [xs[i] for own in slots for xs in own.values() if xs[i] is not None]
        dtypes = [] if any(map(is_encoded, stored)) else [x.dtype for x in stored]
        if dtypes and math.prod(jnp.shape(leaf)) < tx.below and not is_split(leaf) and not varying(leaf):
            kind = (jnp.result_type(leaf), *(acts_on[i] for acts_on in inputs.mask), *dtypes)
            alike.setdefault(kind, []).append(i)
    groups = tuple(
        tuple(members[start : start + LEAVES_PER_CALL])
        for members in alike.values()
        for start in range(0, len(members), LEAVES_PER_CALL)
    )
    for i in itertools.chain(*groups):
        check_not_spread(*inputs.named[i])
    keys = tuple(tuple(map(word, keys)) for keys, _ in flatten_with_keys(params)[0])
    packing = Packing(groups, keys, tuple(tuple(jnp.shape(leaf)) for leaf in inputs.leaves))
    return _packed(state, engine.layout, inputs.treedef, packing)


def unpack_state(tx: packed, state: PackedState, params: Any) -> ChainState:
    """The state that the chain itself would have: for checkpoints, to look at, and to go on without packing.

    Args:
        tx: what made the state.
        state: its state.
        params: the parameters; only their shapes matter.

    Raises:
        TypeError: if ``tx`` is no ``packed``, or ``state`` no ``PackedState``.
        ValueError: for a state of other parameters or another chain.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = [jnp.ones(2), jnp.ones(3)], gradtx.packed(gradtx.momentum())
    >>> gradtx.unpack_state(tx, tx.init(params), params).slots["momentum"]["m"]
    [Array([0., 0.], dtype=float32), Array([0., 0., 0.], dtype=float32)]
    """
    engine = _chain_of(tx)._engine
    inputs = engine.inputs(params)
    in_parts, _ = _in_parts(state, inputs)
    engine.layout.read(in_parts, inputs)
    is_part = lambda x: isinstance(x, View)  # noqa: E731
    return jax.tree.map(as_array, in_parts, is_leaf=is_part)


def check_not_spread(path: str, leaf: Any) -> None:
    """Refuses a leaf whose slots would be gathered from all devices in every step, and held whole on each."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.core.Tracer) or sharding is None or sharding.is_fully_replicated:
        return
    raise ValueError(
        f"packed: leaf {path!r} of {leaf.size} elements is spread over devices ({sharding}), and packed its slots "
        f"would be whole on each, and gathered in every step. Pass below={leaf.size} or less, so that it is left out, "
        "or leave packed out: it is for one device."
    )


def _chain_of(tx: Any) -> Chain | Rule:
    if not isinstance(tx, packed):
        raise TypeError(f"gradtx: expected packed(...), found {tx!r}")
    return tx.tx


def _packed(state: ChainState, layout: Layout, treedef: Any, packing: Packing | None) -> PackedState:
    """A state with the slots of these leaves packed; of none, as it is."""

    groups = packing.groups if packing is not None else ()

    def pack(tree: Any) -> Any:
        if packing is None or not groups:
            return tree
        leaves = treedef.flatten_up_to(tree)
        flat = [None if leaves[group[0]] is None else join([leaves[i] for i in group]) for group in groups]
        for i in itertools.chain(*groups):
            leaves[i] = None
        return PackedSlot(treedef.unflatten(leaves), tuple(flat), packing)

    slots = {
        rule: {slot: pack(tree) if slot in layout.leaf_slots(rule) else tree for slot, tree in own.items()}
        for rule, own in state.slots.items()
    }
    return knowing(PackedState, known_to(state))(state.count, state.hyperparams, slots)


def _in_parts(state: PackedState, tree: FlatTree) -> tuple[ChainState, Packing | None]:
    """The state of the chain, in which packed leaves are parts of the flat arrays, and what is packed."""
    if not isinstance(state, PackedState):
        hint = " pack_state packs one." if isinstance(state, ChainState) else ""
        raise TypeError(f"packed: expected the PackedState that init returned, found {type(state).__name__}.{hint}")
    packings: set[Packing] = set()

    def in_parts(name: str, slot: Any) -> Any:
        if not isinstance(slot, PackedSlot):
            return slot
        packing = slot.packing
        if packing not in packings:
            packing.check(tree.named)
            packings.add(packing)
        of_one = [None]  # parameters that are one array
        arrays: Any = of_one if slot.leaves is None else leaves_like(tree.treedef, slot.leaves)
        for group, flat in zip(packing.groups, slot.flat, strict=True):
            if flat is None:
                continue
            check_on_device(f"slot {name}", flat, "packed")
            shapes = [packing.shapes[i] for i in group]
            size = sum(map(math.prod, shapes))
            if arrays is None or jnp.shape(flat) != (size,):
                raise ValueError(
                    f"packed: slot {name} is not as init made it: {len(group)} leaves of {size} elements in all stand "
                    f"in one flat array, which has shape {jnp.shape(flat)}."
                )
            for i, part in zip(group, split(flat, shapes), strict=True):
                arrays[i] = part
        return slot.leaves if arrays is None else tree.treedef.unflatten(arrays)

    slots = {
        rule: {slot: in_parts(f"{rule}.{slot}", value) for slot, value in own.items()}
        for rule, own in state.slots.items()
    }
    return knowing(ChainState, known_to(state))(state.count, state.hyperparams, slots), next(iter(packings), None)
