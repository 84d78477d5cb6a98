"""Slots in the memory of the host between steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx._core import selectors
from gradtx._core.mesh import check_memory, puts_constants, starts
from gradtx._core.walk import words
from gradtx._engine.transformation import check_transformation, run_inside, started
from gradtx._wrappers.base import Wrapper

_PINNED = "pinned_host"


class offload(Wrapper[Any]):
    """The slots in the memory of the host between steps: on the device before a step, and back on the host after it.

    So the device has room for activations while gradients are computed. The price is what moves, twice the bytes of the
    slots in each step. Numbers are the same.

    Args:
        tx: a gradtx chain, rule or wrapper, or any optax transformation.
        memory_kind: "pinned_host", the memory that devices read and write by themselves, and the only one that types of
            jax know beside theirs.
        where: which of them, by their path in the state, as ``momentum/m/encoder/kernel``: a regular expression, a
            predicate, or a mask like the state (see ``where``). None (the default): all. Scalars, as counts and
            hyperparameters, stay on the device, so that a state that was restored compiles nothing anew.

    Guards belong inside, ``offload(skip_nonfinite(tx))``: a condition takes no arrays of the host.

    State: that of ``tx``. ``state_shardings`` of this wrapper names the memory of each array.

    Inf and NaN: what ``tx`` does.

    Raises:
        TypeError: if ``tx`` is no transformation; in ``update`` of what is around it, from a condition.
        ValueError: for another ``memory_kind``; in ``init`` and ``update``, on devices without that memory, and for a
            ``where`` that chooses nothing.

    >>> import gradtx, jax.numpy as jnp
    >>> params, tx = {"w": jnp.ones((4, 2))}, gradtx.offload(gradtx.adam(0.1), where="rms/s")
    >>> params, state = gradtx.step(tx, params, params, tx.init(params))
    >>> state.slots["rms"]["s"]["w"].sharding.memory_kind
    'pinned_host'
    """

    tx: optax.GradientTransformation
    memory_kind: str = _PINNED
    where: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        check_transformation(self.label, "tx", self.tx)
        if self.where is not None:
            object.__setattr__(self, "where", selectors.selector(self.where))
        if self.memory_kind != _PINNED:
            raise ValueError(f"offload: memory_kind must be {_PINNED!r}, found {self.memory_kind!r}")

    def _members(self, state: Any) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state)}

    @starts
    def init(self, params: Any) -> Any:
        """The state before the first step, its slots on the host."""
        return self._moved(started(self.tx, params), jax.memory.Space.Host)

    @puts_constants
    def run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply_updates: bool) -> tuple[Any, Any]:
        """One step on the device."""
        state = self._moved(state, jax.memory.Space.Device)
        after, state = run_inside(self.tx, updates, state, params, extra, apply_updates)
        return after, self._moved(state, jax.memory.Space.Host)

    def _moved(self, state: Any, space: Any) -> Any:
        """The state with its slots in another memory."""
        check_memory(self.label, self.memory_kind, jax.devices()[0])
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        named = [("/".join(words(keys)), x) for keys, x in leaves]
        chosen = selectors.chosen("" if self.where is None else self.where, named, treedef, "where of offload")
        moves = [one and jnp.ndim(x) > 0 for one, (_, x) in zip(chosen, named, strict=True)]
        return treedef.unflatten(
            [jax.device_put(x, space) if one else x for one, (_, x) in zip(moves, named, strict=True)]
        )
