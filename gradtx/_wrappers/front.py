"""Rules in front of a chain whose numbers a wrapper knows: part of the chain's own pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx._chain import Chain, chain
from gradtx._core.numerics import added, compute_dtype, safe_divide
from gradtx._core.state import ChainState
from gradtx._wrappers.base import checked_state
from gradtx.rules.base import Hyper, Rule, hyper


class divide(Rule):
    """u ← u/c, and 0 for c = 0. Inf and NaN stay.

    By 1/c, one number for all elements: XLA writes out what it divides for several others to read.
    """

    equation = r"u \leftarrow u / c"

    divisor: Hyper = hyper(default=1.0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction * safe_divide(1, c.divisor)), {}


class gather(Rule):
    """u ← (s + w·u)/c and s ← 0: the mean of what was added up in s, and of what comes in last.

    w is 1 where it is None, and c likewise. w·u is 0 for w = 0, whatever u is.
    """

    equation = r"u \leftarrow (s + w u) / c, \quad s \leftarrow 0"
    accumulates = False

    divisor: Hyper | None = hyper(default=None)
    weight: Hyper | None = hyper(default=None)

    def slots(self, param):
        return {"sum": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        u = added(slots.sum, weighted(signal.direction, None if self.weight is None else c.weight))
        if self.divisor is not None:
            u = u * safe_divide(1, c.divisor)
        return signal._replace(direction=u), {"sum": jnp.zeros_like(slots.sum)}


def weighted(gradient: jax.Array, weight: jax.Array | None) -> jax.Array:
    """w·g; g for no w, and 0 for w = 0, whatever g is."""
    return gradient if weight is None else jnp.where(weight == 0, 0, weight.astype(gradient.dtype) * gradient)


def with_front(tx: Chain, state: ChainState, numbers: dict[str, jax.Array], slots: dict[str, Any]) -> ChainState:
    """The state of a chain with such a rule in front, from that of the chain behind, and its numbers and slots."""
    state, name = checked_state("gradtx", state, ChainState), tx.names[0]
    dtype = compute_dtype(*jax.tree.leaves(state.hyperparams))
    hyperparams = {name: {key: jnp.asarray(x, dtype) for key, x in numbers.items()}} if numbers else {}
    return state._replace(
        hyperparams=state.hyperparams | hyperparams, slots=state.slots | ({name: slots} if slots else {})
    )


def without_front(tx: Chain, state: ChainState, like: ChainState) -> tuple[ChainState, dict[str, Any]]:
    """The state of the chain behind, as an earlier one, and the slots of the rule in front."""
    hyperparams, slots = (
        {name: own[name] for name in old}
        for own, old in ((state.hyperparams, like.hyperparams), (state.slots, like.slots))
    )
    return like._replace(count=state.count, hyperparams=hyperparams, slots=slots), state.slots.get(tx.names[0], {})


def dividing(tx: optax.GradientTransformation) -> Chain | None:
    """The chain with a division in front of its own rules.

    None for what is no chain, and for one with an observer or a rule that maps whole trees: these may look at what came
    in, and are to see it divided.
    """
    return _behind(divide(), tx)


def gathering(tx: optax.GradientTransformation, divides: bool, weighs: bool) -> Chain | None:
    """The chain with a ``gather`` in front of its own rules; None where ``dividing`` is."""
    return _behind(gather(divisor=1.0 if divides else None, weight=1.0 if weighs else None), tx)


def _behind(front: Rule, tx: optax.GradientTransformation) -> Chain | None:
    if not isinstance(tx, Chain | Rule) or any(rule.holds_tree for rule in tx.rules):
        return None
    return chain(front, tx)
