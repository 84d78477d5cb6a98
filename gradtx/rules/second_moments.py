"""Rules that make or edit the second moment."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._maths import Tick
from gradtx._numerics import abs_sq, fade, mix
from gradtx._rule import Hyper, Rule, hyper


class rms(Rule):
    r"""Exponential moving average of the squared gradient: s ← βs + (1−β)|g|²; v ← s.

    The average starts at zero; ``debias`` corrects that. For complex gradients |g|² is the squared modulus, and s is
    real. A gradient whose square overflows, above 1.8e19 in float32, makes v infinite, and the step 0 from then on.

    Args:
        decay: β in [0, 1). 0.9 as Hinton's; Adam takes 0.999.

    State: ``s`` like the parameters, real; ``weight``, the total weight in s (a scalar).

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Tieleman & Hinton (2012), Coursera lecture 6.5.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.rms(0.9), gradtx.precondition(eps=0.0))
    >>> updates, state = tx.update(jnp.array([10.0, -0.1]), tx.init(jnp.zeros(2)))
    >>> print(updates.round(4))
    [ 3.1623 -3.1623]
    """

    equation = r"s \leftarrow \beta s + (1-\beta) \lvert g\rvert^2, \quad v \leftarrow s"
    accumulates = True
    second_moment = "makes"

    decay: Hyper = hyper(default=0.9, low=0, below=1)

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        return Tick(vars(h), {"weight": weight}, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        s = mix(c.decay, c.decay_complement, slots.s, abs_sq(signal.gradient))
        return signal._replace(second_moment=s), {"s": s}


class monotone_rms(rms):
    r"""The review article's max-V: s ← max(βs + (1−β)|g|², s); v ← s.

    The maximum is fed back into the average, so v never falls and steps never grow. This is not AMSGrad (``rms,
    max_v``), whose average forgets; its v is never smaller than AMSGrad's.

    Args:
        decay: β in [0, 1). 0.9 as in ``rms``.

    State: as ``rms``. The weight is that of ``rms``, which is exact for a constant gradient.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: the article names none; compare Reddi et al. (2018), Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.monotone_rms(0.5), gradtx.precondition(eps=0.0))
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([0.0]), state)
    >>> print(state.slots["monotone_rms"]["s"])
    [2.]
    """

    equation = r"s \leftarrow \max(\beta s + (1-\beta) \lvert g\rvert^2, s), \quad v \leftarrow s"

    def apply(self, signal, slots, param, c):
        s = jnp.maximum(mix(c.decay, c.decay_complement, slots.s, abs_sq(signal.gradient)), slots.s)
        return signal._replace(second_moment=s), {"s": s}


class centered_rms(Rule):
    r"""The variance of the gradient instead of its square: v ← E|g|² − |E g|², both averages starting at zero.

    Computed as d ← β(d + (1−β)|g − m|²); m ← βm + (1−β)g; v ← d, which is the same number without the difference of
    two nearly equal ones: it never turns negative, and keeps its digits where the gradient hardly varies. There v goes
    to zero with βᵗ, and what is divided by its root grows until epsilon bounds it: that is what centering means.

    Args:
        decay: β in [0, 1). 0.9 as in ``rms``.

    State: ``m`` like the parameters; ``d`` likewise, real; ``weight`` (a scalar). The weight is that of ``rms``.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Graves (2013), "Generating sequences with recurrent neural networks", equations 38 to 45; the recursion is
    Welford's.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.centered_rms(0.5), gradtx.precondition(0.0))
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> print(state.slots["centered_rms"]["d"])
    [1.]
    """

    equation = (
        r"d \leftarrow \beta (d + (1-\beta) \lvert g - m\rvert^2), \quad "
        r"m \leftarrow \beta m + (1-\beta) g, \quad v \leftarrow d"
    )
    accumulates = True
    second_moment = "makes"

    decay: Hyper = hyper(default=0.9, low=0, below=1)

    def slots(self, param):
        return {"m": jnp.zeros_like(param), "d": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        return Tick(vars(h), {"weight": weight}, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        beta, complement = c.decay, c.decay_complement
        deviation = abs_sq(signal.gradient - slots.m)
        d = fade(beta, complement, slots.d, beta * complement * deviation)
        m = mix(beta, complement, slots.m, signal.gradient)
        return signal._replace(second_moment=d), {"m": m, "d": d}


class adagrad_sum(Rule):
    r"""Sum of the squared gradients: s ← s + |g|²; v ← initial + s.

    Args:
        initial: what the sum starts at, ≥ 0. 0 as in the paper; optax and Keras start at 0.1.

    A gradient whose square overflows, above 1.8e19 in float32, makes v infinite, and the step 0 from then on.

    State: ``s`` like the parameters, real. The weight of v is the number of steps, so that ``debias`` makes v a mean.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Duchi, Hazan & Singer (2011), "Adaptive subgradient methods".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.adagrad_sum(), gradtx.precondition())
    >>> updates, state = tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([4.0]), state)
    >>> print(updates)
    [0.8]
    """

    equation = r"s \leftarrow s + \lvert g\rvert^2, \quad v \leftarrow s_0 + s"
    accumulates = True
    second_moment = "makes"

    initial: Hyper = hyper(default=0.0, low=0)

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def tick(self, h, scalars, weights, count):
        return Tick(vars(h), {}, weights._replace(second_moment=count.astype(weights.second_moment.dtype) + 1))

    def apply(self, signal, slots, param, c):
        s = slots.s + abs_sq(signal.gradient)
        return signal._replace(second_moment=c.initial + s), {"s": s}


class max_v(Rule):
    r"""AMSGrad's maximum over time: s ← max(s, v); v ← s.

    Before ``debias`` it is torch's and Keras's AMSGrad, after it optax's, and without ``debias`` the paper's.

    State: ``s`` like the parameters, real. Inf and NaN stay in the maximum for ever.

    Source: Reddi, Kale & Kumar (2018), "On the convergence of Adam and beyond", Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.rms(0.5), gradtx.max_v(), gradtx.precondition())
    >>> state = tx.init(jnp.zeros(1))
    >>> for g in (2.0, 0.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    >>> print(state.slots["rms"]["s"], state.slots["max_v"]["s"])
    [1.] [2.]
    """

    equation = r"s \leftarrow \max(s, v), \quad v \leftarrow s"
    accumulates = False
    second_moment = "edits"

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def apply(self, signal, slots, param, c):
        s = jnp.maximum(slots.s, signal.second_moment)
        return signal._replace(second_moment=s), {"s": s}
