"""Nesterov's lookahead."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._maths import Tick
from gradtx._rule import Hyper, Rule, hyper


class nag_lookahead(Rule):
    r"""Nesterov's lookahead in one gradient: with d ← u the step of the iterate, u ← d + κ'd − κd₋.

    d₋ is the step before and κ' the factor of the next step; for a constant κ this is d + κ(d − d₋). Must be last,
    after the learning rate. The parameters held are then the looked-ahead points, w plus κ times the last step,
    where the gradient is to be taken; the iterate w is the parameters minus the slot ``offset``.

    Equal to Nesterov (1983) and Sutskever et al. (2013), for any learning rate and momentum schedule, as
    ``chain(scale_by_learning_rate(η), trace(μ), nag_lookahead(μ))``. The review article looks ahead by the whole
    last step.

    Args:
        factor: κ ≥ 0. 1.0 as in the article; μ for Nesterov's method.

    State: ``offset`` like the parameters, κ times the last step.

    Inf and NaN stay in their element, and in its slots from then on.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.scale_by_learning_rate(0.1), gradtx.nag_lookahead(1.0))
    >>> g = jnp.array([1.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates, state.slots["nag_lookahead"]["offset"])
    [-0.2] [-0.1]
    """

    equation = r"d \leftarrow u, \quad u \leftarrow d + \kappa (d - d_{t-1})"
    last = True

    factor: Hyper = hyper(default=1.0, low=0)

    def slots(self, param):
        return {"offset": jnp.zeros_like(param)}

    def tick(self, h, scalars, weights, count):
        return Tick({"factor": self.upcoming("factor", h, count)}, {}, weights)

    def apply(self, signal, slots, param, c):
        offset = c.factor * signal.direction
        return signal._replace(direction=signal.direction + (offset - slots.offset)), {"offset": offset}
