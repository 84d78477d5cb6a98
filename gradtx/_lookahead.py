"""The two points of a lookahead: where the iterate is, and where the gradient belongs."""

from __future__ import annotations

from typing import Any

import jax

from gradtx._state import ChainState

__all__ = ["lookahead_iterate", "lookahead_point"]


def lookahead_iterate(state: Any, params: Any) -> Any:
    """The iterate w of a chain that ends in ``nag_lookahead``, whose parameters are the points looked ahead to.

    For evaluation and for checkpoints: w = params − offset, in the parameters' dtypes.

    Args:
        state: of the chain, or of whatever the chain stands in.
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
    return jax.tree.map(lambda p, offset: (p - offset).astype(p.dtype), params, slot)


def lookahead_point(state: Any, params: Any) -> Any:
    """Where the next gradient belongs, for a chain that ends in ``two_point_lookahead``: w + κ·(last step).

    Args:
        state: of the chain, or of whatever the chain stands in.
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
    return jax.tree.map(lambda p, ahead: (p + ahead).astype(p.dtype), params, slot)


def _slot(state: Any, slot: str, rule: str) -> Any:
    """The one slot of this name in all chain states within a state."""
    states = [x for x in jax.tree.leaves(state, is_leaf=_is_chain_state) if _is_chain_state(x)]
    found = [own[slot] for chain_state in states for own in chain_state.slots.values() if slot in own]
    if len(found) != 1:
        others = {"offset": "ahead", "ahead": "offset"}
        hint = ""
        if any(others[slot] in own for chain_state in states for own in chain_state.slots.values()):
            hint = " It has the other form of lookahead: nag_lookahead holds points, two_point_lookahead iterates."
        number = len(found) or "no"
        raise ValueError(f"gradtx: this state has {number} slots {slot!r} of a {rule} rule; one is needed.{hint}")
    return found[0]


def _is_chain_state(x: Any) -> bool:
    return isinstance(x, ChainState)
