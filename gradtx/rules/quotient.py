"""From averages to a direction: their weights divided out, and the quotient m/√V."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._maths import Tick
from gradtx._numerics import safe_divide, safe_sqrt
from gradtx._rule import Hyper, Rule, hyper
from gradtx._signal import Weights


class debias(Rule):
    r"""Divide averages by their weights: u ← u/w_u; v ← v/w_v; then both weights are 1.

    An average that starts at zero is too small at first. The weights are carried along the chain (see ``Weights``),
    so this is right for an exponential average (where the weight is 1 − βᵗ), for heavy ball and for a sum, and for
    decays that vary. After ``precondition`` it is the "epsilon hat" form of Adam. Nothing averaged yet: nothing
    changes.

    Inf and NaN stay in their element.

    Source: Kingma & Ba (2015), section 3.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.momentum(0.9), gradtx.debias())
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 1. -2.]
    """

    equation = r"u \leftarrow u / w_u, \quad v \leftarrow v / w_v, \quad w_u, w_v \leftarrow 1"

    def tick(self, h, scalars, weights, count):
        divisors = {f"w_{lane}": jnp.where(w == 0, 1, w) for lane, w in zip("uv", weights, strict=True)}
        return Tick(divisors, {}, Weights(*map(jnp.ones_like, weights)))

    def apply(self, signal, slots, param, c):
        v = None if signal.second_moment is None else signal.second_moment / c.w_v
        return signal._replace(direction=signal.direction / c.w_u, second_moment=v), {}


class precondition(Rule):
    r"""Divide by the root of the second moment: u ← u/(√(v + eps_root) + eps), 0 where the denominator is 0.

    Uses v up. Carries the weights: w_u ← w_u/√w_v.

    Args:
        eps: ε ≥ 0, outside the root. 1e-8 as in Adam. It bounds the step where gradients are tiny.
        eps_root: ≥ 0, inside the root. 0 as in Adam; optax.rmsprop has its epsilon here.

    A NaN in v or u gives NaN; an infinite v gives 0 for a finite u.

    Source: Kingma & Ba (2015), Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.adagrad_sum(), gradtx.precondition(eps=0.0))
    >>> updates, state = tx.update(jnp.array([5.0, 0.0, -1e-6]), tx.init(jnp.zeros(3)))
    >>> print(updates)
    [ 1.  0. -1.]
    """

    equation = r"u \leftarrow u / (\sqrt{v + \epsilon_r} + \epsilon), \quad w_u \leftarrow w_u / \sqrt{w_v}"
    second_moment = "uses"

    eps: Hyper = hyper(default=1e-8, low=0)
    eps_root: Hyper = hyper(default=0.0, low=0)

    def tick(self, h, scalars, weights, count):
        w = safe_divide(weights.direction, safe_sqrt(weights.second_moment))
        return Tick(vars(h), {}, Weights(w, jnp.ones_like(w)))

    def apply(self, signal, slots, param, c):
        denominator = safe_sqrt(signal.second_moment + c.eps_root) + c.eps
        return signal._replace(direction=safe_divide(signal.direction, denominator), second_moment=None), {}
