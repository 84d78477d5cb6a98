"""Points looked ahead to: Nesterov's, and those of a constant distance."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.numerics import in_two, norms
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["nag_lookahead", "normalized_lookahead", "two_point_lookahead"]


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

    Inf and NaN stay in their element, and in its slot until the next step.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.scale_by_learning_rate(0.1), gradtx.nag_lookahead(1.0))
    >>> g = jnp.array([1.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates, state.slots["nag_lookahead"]["offset"])
    [-0.2] [-0.1]
    """

    equation = r"d \leftarrow u, \quad u \leftarrow d + \kappa (d - d_{t-1})"
    accumulates = False
    last = True

    factor: Hyper = hyper(default=1.0, low=0)

    def slots(self, param):
        return {"offset": jnp.zeros_like(param)}

    def tick(self, h, scalars, weights, count):
        return Tick({"factor": self.upcoming("factor", h, count)}, {}, weights)

    def apply(self, signal, slots, param, c):
        offset = c.factor * signal.direction
        return signal._replace(direction=signal.direction + (offset - slots.offset)), {"offset": offset}


class normalized_lookahead(Rule):
    r"""A lookahead of constant length: with d ← u the step of the iterate and o ← ρd/‖d‖, u ← d + o − o₋.

    Behind a momentum that is MSAM: the gradient is taken at a distance ρ of the iterate, where SAM takes it, but along
    the momentum, which is there already, so that no second gradient is needed. Flat minima are preferred. The norm is
    that over all leaves. Must be last, after the learning rate.

    The parameters held are the points looked ahead to, as those of ``nag_lookahead``, whose lookahead grows with the
    step. The iterate w is the parameters minus the slot ``offset``: ``evaluation_point(state, params)``.

    Args:
        radius: ρ ≥ 0, in units of the norm of all parameters. In the paper 0.3 to 3 for networks of images, above
            the ρ of SAM. In the last steps 0, by a schedule, the parameters are the iterate.

    State: ``offset`` like the parameters, o. A step of 0 has none.

    Inf and NaN: a NaN in u makes all leaves NaN. Beside an inf the others have no offset.

    Source: Becker, Altrock & Risse (2024), "Momentum-SAM: sharpness aware minimization without computational overhead".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.1, 0.9), gradtx.normalized_lookahead(5.0))
    >>> p = jnp.array([0.0, 0.0])
    >>> p, state = gradtx.step(tx, p, jnp.array([30.0, 40.0]), tx.init(p))
    >>> print(p, gradtx.evaluation_point(state, p))
    [-6. -8.] [-3. -4.]
    """

    equation = r"d \leftarrow u, \quad o \leftarrow \rho d / \lVert d\rVert, \quad u \leftarrow d + o - o_{t-1}"
    accumulates = False
    last = True
    scope = "tree"

    radius: Hyper = hyper(low=0)

    def slots(self, param):
        return {"offset": jnp.zeros_like(param)}

    def measure(self, groups, total):
        return norms(groups, total)

    def settle(self, c, measured):
        inverse, length = in_two(c.radius, measured)
        return {"inverse": inverse, "length": length}

    def apply(self, signal, slots, param, c):
        offset = c.length * (c.inverse * signal.direction)
        return signal._replace(direction=signal.direction + (offset - slots.offset)), {"offset": offset}


class two_point_lookahead(Rule):
    r"""The same lookahead with two points: u ← u, and the slot ``ahead`` ← κ'u says where the next gradient belongs.

    The parameters held are the iterates w. Take the gradient at ``lookahead_point(state, params)``, which is w plus κ
    times the last step, and apply it to w. Its points are the parameters that ``nag_lookahead`` holds, for any chain
    before it and any schedule; only weight decay differs, which shrinks the parameters that are held. Must be last,
    after the learning rate.

    Args:
        factor: κ ≥ 0. 1.0 as in the review article; μ for Nesterov's method.

    State: ``ahead`` like the parameters, κ times the last step.

    Inf and NaN stay in their element, and in its slot until the next step.

    Source: Nesterov (1983); Sutskever et al. (2013).

    >>> import gradtx, jax, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(0.1), gradtx.two_point_lookahead(0.5))
    >>> w = jnp.array([1.0, -2.0])
    >>> state = tx.init(w)
    >>> for _ in range(200):
    ...     grads = jax.grad(lambda x: jnp.sum(x**2))(gradtx.lookahead_point(state, w))
    ...     w, state = gradtx.step(tx, w, grads, state)
    >>> bool(jnp.linalg.norm(w) < 1e-6)
    True
    """

    equation = r"u \leftarrow u, \quad a \leftarrow \kappa u"
    accumulates = False
    last = True

    factor: Hyper = hyper(default=1.0, low=0)

    def slots(self, param):
        return {"ahead": jnp.zeros_like(param)}

    def tick(self, h, scalars, weights, count):
        return Tick({"factor": self.upcoming("factor", h, count)}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal, {"ahead": c.factor * signal.direction}
