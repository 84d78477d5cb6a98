"""A division in front of a chain, by a number that a wrapper knows: part of the chain's own pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gradtx._chain import Chain, chain
from gradtx._core.numerics import compute_dtype, safe_divide
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


def dividing(tx: optax.GradientTransformation) -> Chain | None:
    """The chain with a division in front of its own rules.

    None for what is no chain, and for one with an observer or a rule that maps whole trees: these may look at what came
    in, and are to see it divided.
    """
    if not isinstance(tx, Chain | Rule) or any(rule.holds_tree for rule in tx.rules):
        return None
    return chain(divide(), tx)


def with_divisor(tx: Chain, state: ChainState, divisor: jax.Array) -> ChainState:
    """The state of a chain of ``dividing``, from that of the chain that it was made of."""
    state = checked_state("gradtx", state, ChainState)
    dtype = compute_dtype(*jax.tree.leaves(state.hyperparams))
    return state._replace(hyperparams=state.hyperparams | {tx.names[0]: {"divisor": jnp.asarray(divisor, dtype)}})


def without_divisor(state: ChainState, like: ChainState) -> ChainState:
    """The state of the chain that a chain of ``dividing`` was made of; ``like`` is an earlier one."""
    hyperparams = {name: state.hyperparams[name] for name in like.hyperparams}
    return like._replace(count=state.count, hyperparams=hyperparams, slots=state.slots)
