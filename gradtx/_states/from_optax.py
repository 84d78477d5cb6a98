"""The states of optax's optimizers, to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import optax

from gradtx._chain import Chain
from gradtx._core.contract import MomentKind
from gradtx._core.state import ChainState
from gradtx._states.moments import Maximum, count_of, ported
from gradtx.rules.base import Rule


def from_optax(tx: Chain | Rule, optax_state: Any, params: Any, count: int | None = None) -> ChainState:
    r"""The state of a chain that goes on where an optax optimizer stands.

    Args:
        tx: the same optimizer as a chain of gradtx: what ``gradtx.dialects.optax`` gives for the same arguments.
            Hyperparameters and schedules are its own.
        optax_state: the optimizer's state: ``sgd``, ``adam``, ``adamw``, ``amsgrad``, ``nadam``, ``nadamw``,
            ``lion``, ``rmsprop``, ``adagrad`` and ``ema``, also in ``optax.chain``, ``optax.masked`` (for rules with
            the same ``where``) or ``optax.inject_hyperparams``, beside clips, decay, schedules and whatever has no
            state.
        params: the parameters.
        count: steps taken. None, the default: what the state's counters say. SGD, RMSProp and AdaGrad at a constant
            learning rate count nothing; nor do their steps depend on it, and 0 is taken.

    The conversion: optax keeps the sum of AdaGrad with what it started from, :math:`s = S - s_0`; for a centered
    RMSProp two raw moments, :math:`d = \nu - |\mu|^2`; and instead of the weights of averages a count, t: weights are
    those that ``tx`` has after t steps, with its own decays and schedules (:math:`1 - \beta^t` for a constant one).

    The trajectory is the one optax would have continued, to rounding, if ``tx`` is the same optimizer. That is not
    checked further than that each part of the state has a rule that holds such a thing, in order.

    Raises:
        TypeError: if ``tx`` is no chain or rule. Make the state of a wrapper from that of the chain in it.
        ValueError: for a state, or a rule of ``tx``, that has no counterpart on the other side; if counters differ,
            or there is none and a rule needs it; if trees or shapes differ.

    >>> import gradtx, jax.numpy as jnp, optax
    >>> params, theirs = jnp.zeros(2), optax.adam(0.1)
    >>> updates, their_state = theirs.update(jnp.array([1.0, -2.0]), theirs.init(params))
    >>> state = gradtx.from_optax(gradtx.dialects.optax.adam(0.1), their_state, params)
    >>> print(state.count, state.slots["momentum"]["m"], state.slots["momentum"]["weight"])
    1 [ 0.1 -0.2] 0.1
    """
    parts = list(_parts(optax_state))
    counts = {count_of("from_optax", "count", tree) for kind, tree in parts if kind is None}
    offers = [(kind, tree) for kind, tree in parts if kind is not None]
    return ported("from_optax", tx, params, offers, counts, count, maximum=Maximum.DEBIASED)


_MOMENTS: dict[str, tuple[MomentKind | None, ...]] = {
    # The kinds of the fields of a state, None for a count; by name, since not all of them are public.
    "ScaleByAdamState": (None, MomentKind.AVERAGE, MomentKind.SQUARE),
    "ScaleByAmsgradState": (None, MomentKind.AVERAGE, MomentKind.SQUARE, MomentKind.MAXIMUM),
    "ScaleByLionState": (None, MomentKind.AVERAGE),
    "ScaleByRmsState": (MomentKind.SQUARE,),
    "ScaleByRmsWithCountState": (None, MomentKind.SQUARE),
    "ScaleByRStdDevState": (MomentKind.CENTER, MomentKind.VARIANCE),
    "ScaleByRStdDevWithCountState": (None, MomentKind.CENTER, MomentKind.VARIANCE),
    "ScaleByRssState": (MomentKind.SUM,),
    "TraceState": (MomentKind.TRACE,),
    "EmaState": (None, MomentKind.AVERAGE),
    "ScaleByScheduleState": (None,),
}


_AROUND = ("MaskedState", "InjectHyperparamsState", "InjectStatefulHyperparamsState")


def _parts(state: Any) -> Iterator[tuple[MomentKind | None, Any]]:
    """Moments with their kinds, and counts with None, in order."""
    kind = type(state).__name__
    if kind in _MOMENTS:
        yield from zip(_MOMENTS[kind], map(_unmasked, state), strict=False)  # what is behind is no moment
    elif kind in _AROUND:
        if "count" in state._fields:
            yield None, state.count
        yield from _parts(state.inner_state)
    elif type(state) in (tuple, list):
        for inner in state:
            yield from _parts(inner)
    elif jax.tree.leaves(state):
        raise ValueError(
            f"from_optax: a {kind} has no counterpart. Known are {', '.join(_MOMENTS)}, in tuples and in "
            f"{', '.join(_AROUND)}."
        )


def _unmasked(tree: Any) -> Any:
    """The tree with None where optax has a ``MaskedNode``."""
    return jax.tree.map(lambda x: None if _is_hole(x) else x, tree, is_leaf=_is_hole)


def _is_hole(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
