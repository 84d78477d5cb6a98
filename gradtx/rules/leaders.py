"""Rules that go from the start to the minimum of all gradients so far, and not from one point to the next."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.numerics import abs_sq, safe_divide, safe_sqrt
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["coin_betting", "dual_averaging", "ftrl_proximal", "running_sum"]


class coin_betting(Rule):
    r"""A bet on the sign of the next gradient, by a gambler who wins where the last ones agree: COCOB.

    ::

        L ← max(L, |g|);   A ← A + |g|;   b ← b − g;   R ← max(R − g(p − p₀), 0)
        u ← p₀ + b/max(A + L, αL)·(1 + R/L) − p

    p being the parameters, p₀ the first ones. 1 + R/L is the wealth and the quotient before it the share that is bet.
    The wealth, and so the step, grows exponentially while gradients agree, so that there is no learning rate. A factor
    of all gradients changes nothing. The direction is the step itself: nothing more is to be multiplied with it. Needs
    ``params`` in ``update``.

    Args:
        alpha: α ≥ 0. 100 as in the paper: no more than a hundredth of the wealth in the first step.
        initial: the least L, ≥ 0. 0 as in the paper; ``optax`` has 1e-8.

    State: ``start``, p₀; ``largest``, L; ``total``, A; ``sum``, b; ``reward``, R: all like the parameters.

    Inf and NaN stay in their element, and in its slots from then on.

    Raises:
        TypeError: for complex leaves.

    Source: Orabona & Tommasi (2017), "Training deep networks without learning rates through coin betting", Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.coin_betting(2.0), jnp.array([1.0])
    >>> state = tx.init(p)
    >>> for g in (4.0, 4.0):  # half of a wealth of 1, and two thirds of one of 1 + ½
    ...     p, state = gradtx.step(tx, p, jnp.array([g]), state)
    ...     print(p)
    [0.5]
    [0.]
    """

    equation = (
        r"L \leftarrow \max(L, \lvert g\rvert), \quad A \leftarrow A + \lvert g\rvert, \quad "
        r"b \leftarrow b - g, \quad R \leftarrow \max(R - g (p - p_0), 0), \quad "
        r"u \leftarrow p_0 + \frac{b}{\max(A + L, \alpha L)} (1 + R / L) - p"
    )
    accumulates = True
    normalizes = True
    needs_params = True
    nonnegative = ("largest", "total", "reward")
    real_only = True

    alpha: Hyper = hyper(default=100.0, low=0)
    initial: Hyper = hyper(default=0.0, low=0)

    def slots(self, param):
        zeros = {name: jnp.zeros_like(param) for name in ("largest", "total", "sum", "reward")}
        return {"start": param, **zeros}

    def apply(self, signal, slots, param, c):
        g, way = signal.gradient, param - slots.start
        largest = jnp.maximum(jnp.maximum(slots.largest, c.initial), abs(g))
        total, b = slots.total + abs(g), slots.sum - g
        reward = jnp.maximum(slots.reward - g * way, 0)
        share = safe_divide(b, jnp.maximum(total + largest, c.alpha * largest))
        bet = share * (1 + safe_divide(reward, largest))
        after = {"start": slots.start, "largest": largest, "total": total, "sum": b, "reward": reward}
        return signal._replace(direction=bet - way), after


class running_sum(Rule):
    r"""The sum of all directions: b ← b + u; u ← b. What ``trace`` would be with a decay of 1.

    The numerator of dual averaging, and of sums in general; behind it a step is a way from the start (see
    ``dual_averaging``).

    State: ``b`` like the parameters; ``weight``, the total weight in b (a scalar).

    Weights: w_u ← w + w_u, so that ``debias`` makes the sum a mean.

    Inf and NaN stay in their element, and in its slot from then on.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.running_sum()
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> print(tx.update(jnp.array([2.0]), state)[0])
    [3.]
    """

    equation = r"b \leftarrow b + u, \quad u \leftarrow b"
    accumulates = True
    nonnegative = ("weight",)

    def slots(self, param):
        return {"b": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = scalars.weight + weights.direction.astype(scalars.weight.dtype)
        return Tick({}, {"weight": weight}, weights._replace(direction=weight))

    def apply(self, signal, slots, param, c):
        b = slots.b + signal.direction
        return signal._replace(direction=b), {"b": b}


class dual_averaging(Rule):
    r"""Steps from the start instead of from the parameters: u ← p₀ + u − p, p being the parameters, p₀ the first ones.

    So u, which is to be a sum of steps (see ``running_sum``), is how far the parameters are from the start. Multiplied
    by 1 − μ afterwards they go that share of the way there, which is a momentum. Needs ``params`` in ``update``.

    After the learning rate, which may go into the sum.

    State: ``start``, p₀, like the parameters.

    Inf and NaN stay in their element.

    Source: Nesterov (2009), "Primal-dual subgradient methods for convex problems"; Defazio & Jelassi (2022).

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.scale(-1.0), gradtx.running_sum(), gradtx.dual_averaging())
    >>> p = jnp.array([10.0])
    >>> state = tx.init(p)
    >>> for g in (1.0, 2.0):  # then it is gradient descent
    ...     p, state = gradtx.step(tx, p, jnp.array([g]), state)
    >>> print(p)
    [7.]
    """

    equation = r"u \leftarrow p_0 + u - p"
    accumulates = False
    needs_params = True

    def slots(self, param):
        return {"start": param}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=(slots.start - param) + signal.direction), {"start": slots.start}


class ftrl_proximal(Rule):
    r"""Follow the regularized leader: weights that are exactly 0 unless gradients pull harder than l₁.

    ::

        z ← z + g − (√s − √s₋)/η·p;   u ← (clip(z, ±l₁) − z)/((√s + β)/η + 2l₂) − p,   with s ← s + g²

    p being the parameters. Without l₁, l₂ and β it is AdaGrad with the learning rate η. The direction is the step
    itself: nothing more is to be multiplied with it. Needs ``params`` in ``update``.

    Args:
        learning_rate: η.
        l1: l₁ ≥ 0. 0.
        l2: l₂ ≥ 0. 0.
        beta: β ≥ 0, which makes the first steps smaller. 0.
        initial: what s starts at, ≥ 0. 0 as in the paper. With 0.1, as in Keras, the first step also multiplies the
            parameters by 1 − √(0.1/(0.1 + g²)), since z does not know of them: start them at 0 then.
        shrinkage: l₃ ≥ 0: g + 2l₃p takes the place of g in z, but not in s. None, for 0.
        power: of s, instead of the root's ½; ≥ 0.

    State: ``z`` like the parameters; ``s`` likewise.

    A gradient whose square overflows, above 1.8e19 in float32, makes s infinite, and the step 0 from then on.

    A NaN stays in its element, and in its slots from then on; an inf makes its steps 0.

    Raises:
        TypeError: for complex leaves.
        ValueError: for a ``power`` out of range.

    Source: McMahan et al. (2013), "Ad click prediction: a view from the trenches", Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.ftrl_proximal(0.5, l1=1.0), jnp.array([0.0, 0.0])
    >>> print(p + tx.update(jnp.array([4.0, 0.5]), tx.init(p), p)[0])
    [-0.375  0.   ]
    """

    equation = (
        r"z \leftarrow z + g - (\sqrt{s} - \sqrt{s_{t-1}}) p / \eta, \quad "
        r"u \leftarrow \frac{\mathrm{clip}(z, l_1) - z}{(\sqrt{s} + \beta) / \eta + 2 l_2} - p"
    )
    accumulates = True
    needs_params = True
    nonnegative = ("s",)
    real_only = True

    learning_rate: Hyper = hyper(low=0)
    l1: Hyper = hyper(default=0.0, low=0)
    l2: Hyper = hyper(default=0.0, low=0)
    beta: Hyper = hyper(default=0.0, low=0)
    initial: Hyper = hyper(default=0.0, low=0)
    shrinkage: Hyper | None = hyper(default=None, low=0)
    power: float = dataclasses.field(default=0.5, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.power < float("inf"):
            raise ValueError(f"ftrl_proximal: power must be a number of 0 or more, found {self.power!r}")

    def _root(self, x: jax.Array) -> jax.Array:
        return safe_sqrt(x) if self.power == 0.5 else x**self.power

    def slots(self, param):
        return {"z": jnp.zeros_like(param), "s": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        g, eta = signal.gradient, c.learning_rate
        s = slots.s + abs_sq(g)
        before, root = self._root(c.initial + slots.s), self._root(c.initial + s)
        pulled = g if self.shrinkage is None else g + 2 * c.shrinkage * param
        z = slots.z + pulled - safe_divide((root - before) * param, eta)
        pull = z - jnp.clip(z, -c.l1, c.l1)
        point = -safe_divide(eta * pull, root + c.beta + 2 * eta * c.l2)
        z, u = (jnp.where(root == jnp.inf, *ways) for ways in ((slots.z, z), (0, point - param)))
        return signal._replace(direction=u), {"z": z, "s": s}
