"""Optimizer-state sharding inside of ``shard_map``: reduce-scatter, a step on the shard, all-gather."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from gradtx._core.codecs import SIZE, leaves_in_blocks
from gradtx._core.control import types_of
from gradtx._core.limits import check_choice
from gradtx._core.mesh import (
    divided_over,
    gathered,
    is_manual,
    keeps_rows_whole,
    largest_divided,
    part_of,
    puts_constants,
    starts,
    types_tell,
    varying,
)
from gradtx._core.selectors import flatten_with_keys
from gradtx._core.walk import word
from gradtx._engine import inputs
from gradtx._engine.transformation import check_transformation, run_inside, started
from gradtx._wrappers.base import Wrapper
from gradtx._wrappers.packed import packed

_Combine = Literal["mean", "sum"]


class zero1(Wrapper[Any]):
    r"""Optimizer-state sharding (ZeRO-1) inside of ``jax.shard_map``: each device steps its part of the parameters.

    On N devices along an axis of the mesh, with the parameters w whole on each, and each one's own gradient gᵢ::

        g ← its part of (g₁ + ... + g_N)/N       one reduce-scatter for each leaf
        u, s ← tx(g, s)                           s has the slots of the part alone
        w ← w + u, all parts                      one all-gather for each leaf

    That is the traffic of plain data parallelism, whose all-reduce is a reduce-scatter and an all-gather, with 1/N of
    the state, and no whole gradient beside it. Trajectories are those of plain data parallelism to rounding: the order
    in which gradients are added differs. Norms and guards inside are of all parts.

    A leaf is divided along its longest dimension that N divides (of equals the first); in a mesh of several axes, of
    the shard that is there. A leaf that N divides nowhere is stepped whole on each device, behind the mean of its
    gradients. A parameter that differs along the axis is a shard already, and is left so. Of a leaf with slots in
    blocks (``codecs.Blocks``) the last axis is divided between blocks or not at all, so that its codes are those of
    any other mesh; what is whole for that ``placement`` lists, with its bytes.

    Args:
        tx: a gradtx chain, rule or wrapper, or any optax transformation, but ``packed``. Clips, guards and accumulation
            belong inside.
        axis_name: the axis of the mesh, as ``"data"``.
        combine: "mean", the default: for losses that are means over a device's part of the batch. "sum": for sums.

    The gradient has to be each device's own. ``jax.grad`` by parameters that are the same everywhere sums it over
    devices, with an all-reduce; so take it by ``jax.lax.pcast(params, axis_name, to="varying")``. A gradient that is
    the same everywhere is taken as it is, and nothing is summed.

    State: that of ``tx``, which ``init`` makes whole outside of ``shard_map``, and the parts of inside. In global terms
    the two are the same arrays, so a checkpoint goes from plain training into this and back, and to any number of
    devices. ``state_shardings`` of this wrapper says how it is spread: its ``spec``\ s are what ``shard_map`` takes.

    Inf and NaN: what ``tx`` does.

    Raises:
        TypeError: if ``tx`` is no transformation, or ``packed``, whose flat arrays no axis divides by leaves.
        ValueError: for an unknown ``combine``; in ``update``, outside of ``shard_map`` over the axis, and with
            ``check_vma=False``, where types do not say which gradients are whose.

    Source: Rajbhandari et al. (2020), "ZeRO: memory optimizations toward training trillion parameter models".

    >>> import functools, gradtx, jax, jax.numpy as jnp
    >>> from jax.sharding import NamedSharding, PartitionSpec as P
    >>> mesh, tx = jax.make_mesh((1,), ("data",)), gradtx.zero1(gradtx.adam(0.1), "data")
    >>> params = {"w": jnp.ones((4, 2))}
    >>> shardings = gradtx.state_shardings(tx, params, NamedSharding(mesh, P()))
    >>> specs = jax.tree.map(lambda s: s.spec, shardings)
    >>> @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs))
    ... def train(params, state, batch):
    ...     loss = lambda params: ((batch @ params["w"]) ** 2).mean()
    ...     grads = jax.grad(loss)(jax.lax.pcast(params, "data", to="varying"))
    ...     return gradtx.step(tx, params, grads, state)
    >>> state = jax.jit(tx.init, out_shardings=shardings)(params)
    >>> batch = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("data")))
    >>> params, state = jax.jit(train)(params, state, batch)
    >>> print(params["w"][0], specs.slots["rms"]["s"]["w"])
    [0.9 0.9] P('data',)
    """

    tx: optax.GradientTransformation
    axis_name: str
    combine: _Combine = "mean"

    def __post_init__(self):
        check_transformation(self.label, "tx", self.tx)
        check_choice(self.label, "combine", self.combine, get_args(_Combine))
        if isinstance(self.tx, packed):
            raise TypeError(
                "zero1: packed has the slots of many leaves in one flat array, and these are divided leaf by leaf: "
                f"take {self.tx.tx} itself"
            )

    def _members(self, state: Any) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state)}

    @starts
    def init(self, params: Any) -> Any:
        """The state before the first step, of the parts that are here."""
        leaves, treedef = flatten_with_keys(params)
        parts = [self._started_with(x, block) for (_, x), block in zip(leaves, self._blocks(params), strict=True)]
        with keeps_rows_whole((self.axis_name,)):
            return started(self.tx, treedef.unflatten(parts))

    @puts_constants
    def run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply_updates: bool) -> tuple[Any, Any]:
        """One step of the parts, and all parts of its result."""
        self._check_place()
        leaves, treedef = flatten_with_keys(updates, is_leaf=lambda g: g is None)
        gradients = [g for _, g in leaves]
        wholes = inputs.leaves_like(treedef, params) or gradients
        shards = [params is not None and inputs.is_number(p) and self._differs(p) for p in wholes]
        blocks = _blocks_of(leaves, state)
        dimensions = [
            None if is_shard else self._dimension(p, block)
            for is_shard, p, block in zip(shards, wholes, blocks, strict=True)
        ]
        parts = [
            g if is_shard or not inputs.is_number(g) else self._combined(g, dimension)
            for is_shard, g, dimension in zip(shards, gradients, dimensions, strict=True)
        ]
        if params is not None:
            params = treedef.unflatten(map(self._part, wholes, dimensions))
        after, state = run_inside(self.tx, treedef.unflatten(parts), state, params, extra, apply_updates)
        return treedef.unflatten(map(self._whole, treedef.flatten_up_to(after), dimensions)), state

    def _check_place(self) -> None:
        if not is_manual(self.axis_name):
            raise ValueError(
                f"zero1: a step runs inside of jax.shard_map over the axis {self.axis_name!r}, and here is none. Under "
                "jit with shardings no wrapper is needed: state_shardings(tx, params, shardings, axis=...) divides the "
                "state."
            )
        if not types_tell((self.axis_name,)):
            raise ValueError(
                "zero1: inside of shard_map(check_vma=False) types do not say which gradients are a device's own. Take "
                "the step with check_vma=True, in a shard_map of its own if need be."
            )

    def _dimension(self, whole: Any, block: int) -> int | None:
        """The dimension along which a leaf is divided; None for one that is whole everywhere."""
        if not inputs.is_number(whole):
            return None
        return largest_divided(jnp.shape(whole), jax.lax.axis_size(self.axis_name), block)

    def _blocks(self, params: Any) -> list[int]:
        """The number of elements along the last axis of each leaf that stay together, as it will be in the state."""
        leaves, treedef = flatten_with_keys(params)
        arrays = {i: x for i, (_, x) in enumerate(leaves) if inputs.is_number(x)}

        def init(arrays: dict[int, Any]) -> Any:
            return started(self.tx, treedef.unflatten([arrays.get(i, x) for i, (_, x) in enumerate(leaves)]))

        return _blocks_of(leaves, types_of(init, arrays))

    def _differs(self, x: Any) -> bool:
        return self.axis_name in varying(x)

    def _started_with(self, param: Any, block: int) -> Any:
        """A parameter, or its part: what slots are made of."""
        if is_manual(self.axis_name):
            is_shard = inputs.is_number(param) and self._differs(param)
            return param if is_shard else self._part(param, self._dimension(param, block))
        return divided_over(param, self.axis_name, block) if isinstance(param, jax.Array) else param

    def _part(self, whole: Any, dimension: int | None) -> Any:
        return whole if dimension is None else part_of(whole, self.axis_name, dimension)

    def _combined(self, gradient: Any, dimension: int | None) -> jax.Array:
        """The part of the mean, or sum, of all devices' gradients; what is the same on all of them is that already."""
        if not self._differs(gradient):
            return self._part(gradient, dimension)
        if dimension is None:
            total = jax.lax.psum(gradient, self.axis_name)
        else:
            total = jax.lax.psum_scatter(gradient, self.axis_name, scatter_dimension=dimension, tiled=True)
        return total / jax.lax.axis_size(self.axis_name) if self.combine == "mean" else total

    def _whole(self, part: Any, dimension: int | None) -> Any:
        if dimension is None or inputs.has_no_gradient(part):
            return part
        return gathered(part, self.axis_name, dimension)


def _blocks_of(leaves: list[tuple[Any, Any]], state: Any) -> list[int]:
    """The number of elements along the last axis of each leaf that stay together."""
    in_blocks = leaves_in_blocks(state)
    return [SIZE if tuple(map(word, keys)) in in_blocks else 1 for keys, _ in leaves]
