"""Rules that average the direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradtx._core.contract import Arrays, Tick
from gradtx._core.numerics import fade, mix, safe_divide
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["damped_trace", "momentum", "nesterov", "trace"]


class momentum(Rule):
    r"""Exponential moving average of the direction: m ← βm + (1−β)u; u ← m.

    The review article's momentum. The average starts at zero; ``debias`` corrects that. Equal to ``trace`` up to the
    factor 1−β.

    Args:
        decay: β in [0, 1). 0.9 as everywhere; the article advises 0.85 to 0.95.

    State: ``m`` like the parameters; ``weight``, the total weight in m (a scalar).

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Polyak (1964) for the idea; Kingma & Ba (2015), Algorithm 1, for this form.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.momentum(0.9)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.1 -0.2]
    """

    equation = r"m \leftarrow \beta m + (1-\beta) u, \quad u \leftarrow m"
    accumulates = True
    holds = {"m": "average"}
    nonnegative = ("weight",)

    decay: Hyper = hyper(default=0.9, low=0, below=1)

    def slots(self, param):
        return {"m": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, weights.direction)
        return Tick(vars(h), {"weight": weight}, weights._replace(direction=weight))

    def apply(self, signal, slots, param, c):
        m = mix(c.decay, c.decay_complement, slots.m, signal.direction)
        return signal._replace(direction=m), {"m": m}


class trace(Rule):
    r"""Heavy ball: b ← μb + u; u ← b. With ``nesterov``, u ← u + μb instead.

    ``nesterov=True`` is the form of torch and optax. Before a constant learning rate it is Nesterov's method, and the
    parameters held are the looked-ahead points; for a learning rate that changes, ``nag_lookahead`` is exact.

    Args:
        decay: μ in [0, 1). 0.9 as everywhere.
        nesterov: whether the direction looks one step ahead.

    State: ``b`` like the parameters; ``weight``, the total weight in b (a scalar).

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Polyak (1964); Sutskever et al. (2013), "On the importance of initialization and momentum in deep
    learning".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.trace(0.9), jnp.array([1.0, -2.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates, state = tx.update(g, state)
    >>> print(updates)
    [ 1.9 -3.8]
    """

    accumulates = True
    holds = {"b": "trace"}
    nonnegative = ("weight",)

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    nesterov: bool = False

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        return r"b \leftarrow \mu b + u, \quad u \leftarrow " + (r"u + \mu b" if self.nesterov else "b")

    def steady_weight(self, h):
        return 1 / h.decay_complement

    def slots(self, param):
        return {"b": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = fade(h.decay, h.decay_complement, scalars.weight, weights.direction)
        out = weights.direction + h.decay * weight if self.nesterov else weight
        return Tick(vars(h), {"weight": weight}, weights._replace(direction=out))

    def apply(self, signal, slots, param, c):
        u = signal.direction
        b = fade(c.decay, c.decay_complement, slots.b, u)
        return signal._replace(direction=u + c.decay * b if self.nesterov else b), {"b": b}


class damped_trace(Rule):
    r"""Heavy ball with torch's dampening: b ← μb + (1−τ)u, but b ← u in the first step; u ← b.

    The first gradient enters undamped: the first that b gets, whatever the count of steps. With τ = μ it is an average
    that starts at the first gradient instead of at zero.

    Args:
        decay: μ in [0, 1). 0.9 as everywhere.
        dampening: τ in [0, 1]. 0 as in torch, where it is ``trace``.

    State: ``b`` like the parameters; ``weight``, the total weight in b (a scalar), 0 only before the first step.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: torch.optim.SGD.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.damped_trace(0.5, 0.5), jnp.array([1.0, -2.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates, state = tx.update(3 * g, state)
    >>> print(updates)
    [ 2. -4.]
    """

    accumulates = True
    holds = {"b": "trace"}
    equation = r"b \leftarrow \mu b + (1-\tau_t) u, \quad u \leftarrow b"

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    dampening: Hyper = hyper(default=0.0, low=0)

    def complements(self):
        """1 − τ as well, though τ may be 1."""
        return super().complements() | {"dampening": "dampening_complement"}

    def steady_weight(self, h):
        return h.dampening_complement / h.decay_complement

    def slots(self, param):
        return {"b": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        gain = jnp.where(scalars.weight == 0, 1, h.dampening_complement)
        weight = fade(h.decay, h.decay_complement, scalars.weight, gain * weights.direction)
        # With τ = 1 the weight fades to nothing, which is not a new beginning. 1/divisor/(1 − μ) is finite for any μ.
        info = jnp.finfo(scalars.weight.dtype)
        least = info.tiny / info.eps
        divisor = jnp.where(jnp.abs(weight) < least, least, weight)
        return Tick(vars(h) | {"gain": gain}, {"weight": divisor}, weights._replace(direction=weight))

    def apply(self, signal, slots, param, c):
        b = fade(c.decay, c.decay_complement, slots.b, c.gain * signal.direction)
        return signal._replace(direction=b), {"b": b}


class nesterov(Rule):
    r"""Nadam's first moment, debiased: m ← βm + (1−β)u; u ← μ'·m/(1−P') + (1−μ)·u/(1−P).

    μ is this step's momentum and P the product of all so far; a prime marks those of the next step. Without a
    schedule μ = β. With one, μ at step t = 1, 2, ... is β(1 − ½·0.96^(ψt)). The direction is debiased already, so a
    later ``debias`` leaves it as it is. It is not an average: at a constant gradient the first step of β = 0.9 is
    1.47 times the gradient.

    Args:
        decay: β in [0, 1). 0.9 as in Adam.
        schedule_decay: ψ ≥ 0, or None for constant μ. None is optax's, 0.004 Dozat's and torch's
            (``momentum_decay``), 1.0 that of Keras 3. ψ = 0 gives μ = β/2, which is torch's meaning of 0.

    State: ``m`` like the parameters; ``weight``, 1−P (a scalar).

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Dozat (2016), "Incorporating Nesterov momentum into Adam".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.nesterov(0.9)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates.round(4))
    [ 1.4737 -2.9474]
    """

    accumulates = True
    holds = {"m": "average"}
    debiases = True
    nonnegative = ("weight",)
    equation = (
        r"m \leftarrow \beta m + (1-\beta) u, \quad "
        r"u \leftarrow \mu_{t+1} m / (1-P_{t+1}) + (1-\mu_t) u / (1-P_t)"
    )

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    schedule_decay: Hyper | None = hyper(default=None, low=0)

    def slots(self, param):
        return {"m": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        now, upcoming = vars(h), {name: self.upcoming(name, h, count) for name in vars(h)}
        mu, complement = self._momentum(now, count, 1)
        upcoming_mu, upcoming_complement = self._momentum(upcoming, count, 2)
        # 1−P is the weight of an average with decays μ: carried along, it does not cancel as 1 − β**t would.
        weight = mix(mu, complement, scalars.weight, jnp.ones_like(mu))
        upcoming_weight = mix(upcoming_mu, upcoming_complement, weight, jnp.ones_like(mu))
        past, present = safe_divide(upcoming_mu, upcoming_weight), safe_divide(complement, weight)
        return Tick(now | {"past": past, "present": present}, {"weight": weight}, weights)

    def _momentum(self, h: Arrays, count: jax.Array, ahead: int) -> tuple[jax.Array, jax.Array]:
        """μ and 1−μ, so many steps from here."""
        if self.schedule_decay is None:
            return h["decay"], h["decay_complement"]
        lost = 0.5 * 0.96 ** (h["schedule_decay"] * (count.astype(h["decay"].dtype) + ahead))
        return h["decay"] * (1 - lost), h["decay_complement"] + h["decay"] * lost

    def apply(self, signal, slots, param, c):
        m = mix(c.decay, c.decay_complement, slots.m, signal.direction)
        return signal._replace(direction=c.past * m + c.present * signal.direction), {"m": m}
