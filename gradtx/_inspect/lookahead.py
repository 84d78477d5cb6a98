"""The points of a chain that are not the parameters held: where to evaluate, and where the gradient belongs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.mesh import in_host_memory
from gradtx._core.numerics import real_dtype
from gradtx._core.selectors import flatten_with_paths, listing
from gradtx._core.state import ChainState, PackedState
from gradtx._core.walk import check_state, holds_state, walk
from gradtx._wrappers.packed import PackedSlot
from gradtx._wrappers.partition import PartitionState
from gradtx._wrappers.switch import SwitchState

__all__ = ["evaluation_point", "gradient_point", "lookahead_iterate", "lookahead_point"]

_SLOTS = ("average_offset", "offset", "ahead")

Offsets = dict[str, Any]
"""Arrays by the paths of their leaves, since Flax and ``packed`` have them in boxes of another kind."""

Reader = Callable[[dict[str, Any], dict[str, jax.Array]], Any]
"""A tree of offsets from the slots and the hyperparameters of a rule; None if it holds none."""


def evaluation_point(state: Any, params: Any) -> Any:
    """The parameters to evaluate and to keep, whatever the optimizer: those held, or where a last rule says.

    The average of ``average_iterates`` (EMA, SWA, the schedule-free methods), the iterate of ``nag_lookahead``; for
    every other chain the parameters themselves.

    Args:
        state: of the chain, or of whatever the chain stands in. Of a ``switch``, the phase that is on decides.
        params: the parameters held.

    Raises:
        ValueError: if the state has several such rules for the same leaves.
        TypeError: if the parameters are a state, or the state is a transformation.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.chain(gradtx.sgd(0.1), gradtx.average_iterates()), jnp.array([1.0])
    >>> state = tx.init(p)
    >>> for _ in range(3):
    ...     p, state = gradtx.step(tx, p, jnp.array([1.0]), state)
    >>> print(p.round(2), gradtx.evaluation_point(state, p).round(2))
    [0.7] [0.8]
    """

    def read(slots: dict[str, Any], hyperparams: dict[str, jax.Array]) -> Any:
        if "average_offset" in slots:
            share = 1 - hyperparams["pull"]
            return jax.tree.map(lambda e: share.astype(real_dtype(e.dtype)) * e, slots["average_offset"])
        return jax.tree.map(jnp.negative, slots["offset"]) if "offset" in slots else None

    return _moved_by(state, params, read)


def gradient_point(state: Any, params: Any) -> Any:
    """The parameters to take the next gradient at, whatever the optimizer: those held, or where a last rule says.

    ``lookahead_point`` for a chain that ends in ``two_point_lookahead``; for every other chain the parameters
    themselves.

    Args:
        state: of the chain, or of whatever the chain stands in. Of a ``switch``, the phase that is on decides.
        params: the parameters held.

    Raises:
        ValueError: if the state has several such rules for the same leaves.
        TypeError: if the parameters are a state, or the state is a transformation.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.1), gradtx.two_point_lookahead(0.5))
    >>> w, state = gradtx.step(tx, w := jnp.array([1.0]), jnp.array([2.0]), tx.init(w))
    >>> print(w, gradtx.gradient_point(state, w))
    [0.8] [0.7]
    """
    return _moved_by(state, params, lambda slots, _: slots.get("ahead"))


def _moved_by(state: Any, params: Any, read: Reader) -> Any:
    """The parameters, moved by the one tree of offsets that there is in the state, if there is any."""
    if holds_state(params, (ChainState, PackedState)):
        raise TypeError(
            f"gradtx: params is a state, {type(params).__name__}. The state comes first, then the parameters."
        )
    check_state("gradtx", state)
    offsets = _offsets(state, read)
    if len(offsets) > 1:
        raise ValueError(f"gradtx: this state has {len(offsets)} rules that hold an offset; one at most is expected.")
    return _moved(params, offsets[0], 1) if offsets else params


def lookahead_iterate(state: Any, params: Any) -> Any:
    """The iterate w of a chain that ends in ``nag_lookahead``, whose parameters are the points looked ahead to.

    For evaluation and for checkpoints: w = params − offset, in the parameters' dtypes.

    Args:
        state: of the chain, or of whatever the chain stands in. Of a ``switch``, the phase that is on decides.
        params: the parameters held.

    Raises:
        ValueError: if the state has no such rule, or several.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, y = gradtx.nag(0.1, decay=0.5), jnp.array([1.0])
    >>> y, state = gradtx.step(tx, y, jnp.array([2.0]), tx.init(y))
    >>> print(y, gradtx.lookahead_iterate(state, y))
    [0.8] [0.9]
    """
    slot = _slot(state, "offset", "nag_lookahead")
    return _moved(params, slot, -1)


def lookahead_point(state: Any, params: Any) -> Any:
    """The point where the next gradient belongs, of a chain that ends in ``two_point_lookahead``: w + κ·(last step).

    Args:
        state: of the chain, or of whatever the chain stands in. Of a ``switch``, the phase that is on decides.
        params: the iterate w.

    Raises:
        ValueError: if the state has no such rule, or several.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.1), gradtx.two_point_lookahead(0.5))
    >>> w, state = gradtx.step(tx, w := jnp.array([1.0]), jnp.array([2.0]), tx.init(w))
    >>> print(w, gradtx.lookahead_point(state, w))
    [0.8] [0.7]
    """
    slot = _slot(state, "ahead", "two_point_lookahead")
    return _moved(params, slot, 1)


def _moved(params: Any, moves: Offsets, sign: int) -> Any:
    """params + sign·offsets in the parameters' dtypes; where there is no offset, params."""
    leaves, treedef = flatten_with_paths(params)
    unknown = [(path, None) for path in moves if path not in dict(leaves)]
    if unknown:
        raise ValueError(f"gradtx: the state holds offsets of leaves that are no parameters: {listing(unknown)}")

    def moved(path: str, p: Any) -> Any:
        if path not in moves:
            return p
        if jnp.shape(p) != moves[path].shape:
            raise ValueError(
                f"gradtx: leaf {path!r} of the parameters has shape {jnp.shape(p)}, and its offset in the state "
                f"{moves[path].shape}. Pass the parameters that this state was made for."
            )
        return (p + sign * moves[path]).astype(jnp.result_type(p))

    return treedef.unflatten([moved(path, p) for path, p in leaves])


def _slot(state: Any, slot: str, rule: str) -> Offsets:
    """The one slot of this name in all that is within a state; that of the phase that is on, and of all parts."""
    offsets = _offsets(state, lambda slots, _: slots.get(slot))
    if len(offsets) != 1:
        other = {"offset": "ahead", "ahead": "offset"}[slot]
        hint = ""
        if _offsets(state, lambda slots, _: slots.get(other)):
            hint = " It has the other form of lookahead: nag_lookahead holds points, two_point_lookahead iterates."
        number = len(offsets) or "no"
        raise ValueError(f"gradtx: this state has {number} slots {slot!r} of a {rule} rule; one is needed.{hint}")
    return offsets[0]


def _offsets(state: Any, read: Reader) -> list[Offsets]:
    """The slots of the rules within a state; of a switch, in the phase that is on; of a partition, the parts as one."""
    kinds = (ChainState, PackedState, SwitchState, PartitionState)
    offsets: list[Offsets] = []
    for _, node in walk(state, kinds, within=False):
        if isinstance(node, ChainState | PackedState):
            for rule, slots in node.slots.items():
                points = {slot: _unpacked(x) for slot, x in slots.items() if slot in _SLOTS}
                tree = read(points, node.hyperparams.get(rule, {}))
                offsets += [] if tree is None else [dict(flatten_with_paths(tree)[0])]
            offsets += _offsets(node.slots, read)
        elif isinstance(node, SwitchState):
            offsets += _of_phase(node.switched, _offsets(node.first, read), _offsets(node.then, read))
        elif isinstance(node, PartitionState):
            parts = [tree for part in node.parts.values() for tree in _offsets(part, read)]
            offsets += [functools.reduce(operator.or_, parts)] if parts else []
    return offsets


def _unpacked(slot: Any) -> Any:
    """The offsets of all leaves, on the device: ``offload`` has them on the host."""
    tree = slot.by_path() if isinstance(slot, PackedSlot) else slot
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if in_host_memory(x) else x, tree)


def _of_phase(switched: jax.Array, first: list[Offsets], then: list[Offsets]) -> list[Offsets]:
    """The slot of the phase that is on; zeros if only the other phase has it."""
    if len(first) > 1 or len(then) > 1 or not first + then:
        return first + then
    zeros = jax.tree.map(jnp.zeros_like, (first + then)[0])
    before, after = (offsets[0] if offsets else zeros for offsets in (first, then))
    return [jax.tree.map(lambda a, b: jnp.where(switched, b, a), before, after)]
