"""Rules that mix the direction with the gradient beside it, or with the direction before."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.limits import check_choice
from gradtx._core.numerics import abs_sq, mix, weighted
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["add_difference", "add_momentum", "extrapolate", "quasi_hyperbolic"]


class quasi_hyperbolic(Rule):
    r"""Quasi-hyperbolic mixture of an average and the gradient: u ← νu + (1−ν)g; v ← ν₂v + (1−ν₂)|g|².

    g is the gradient that the accumulators before it read. In the gradient phase, where u is g, nothing changes.
    ν = 0 is the gradient alone, 1 the average alone, ν = β Nesterov's method with the momentum β. Any real ν is
    allowed: Lion with b1 > b2 has ν > 1.

    Many first moments are this rule after ``momentum(β)``: Lion's is ν = b1/b2 with β = b2, Muon's ν = β, QHM's ν as
    it is called there, that of MARS ν = 1 − γ.

    Args:
        nu: ν, the share of the average.
        nu2: ν₂, the share of the second moment; None, the default, leaves it as it is.

    Weights: w_u ← νw_u + 1−ν and w_v likewise, so that ``debias`` after it divides the mixture as a whole, and before
    it only the averages, as QHAdam has it.

    Inf and NaN stay in their element.

    Source: Ma & Yarats (2019), "Quasi-hyperbolic momentum and Adam for deep learning".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.momentum(0.9), gradtx.quasi_hyperbolic(0.5))
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.55 -1.1 ]
    """

    equation = r"u \leftarrow \nu u + (1-\nu) g, \quad v \leftarrow \nu_2 v + (1-\nu_2) \lvert g\rvert^2"

    nu: Hyper = hyper(default=0.7)
    nu2: Hyper | None = hyper(default=None)

    def complements(self):
        """1 − ν and 1 − ν₂ as well, though either may be 1 and more."""
        return super().complements() | {name: f"{name}_complement" for name in self.hyperparameters()}

    def tick(self, h, scalars, weights, count):
        weights = weights._replace(direction=h.nu * weights.direction + h.nu_complement)
        if self.nu2 is not None:
            weights = weights._replace(second_moment=h.nu2 * weights.second_moment + h.nu2_complement)
        return Tick(vars(h), {}, weights)

    def apply(self, signal, slots, param, c):
        g, u, v = signal
        if self.nu2 is not None and v is not None:
            v = weighted(c.nu2, v) + weighted(c.nu2_complement, abs_sq(g))
        return signal._replace(direction=c.nu * u + c.nu_complement * g, second_moment=v), {}


class add_momentum(Rule):
    r"""A second average of the gradient, added to the direction: m ← βm + (1−β)g; u ← u + αm.

    It reads the gradient and not the direction, so it is a branch beside the first average in a flat chain. After
    ``debias`` it is AdEMAMix, whose slow average is not debiased; several in a row are AggMo.

    Args:
        decay: β in [0, 1). 0.9999 as AdEMAMix's slow average.
        factor: α, any number. 5 as optax's AdEMAMix; its paper varies it from 4 to 10.

    State: ``m`` like the parameters; ``weight``, the total weight in m (a scalar).

    Weights: w_u ← w_u + αw.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Pagliardini, Ablin & Grangier (2024), "The AdEMAMix optimizer: better, faster, older".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.momentum(0.9), gradtx.debias(), gradtx.add_momentum(0.5, 4.0))
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 3. -6.]
    """

    equation = r"m \leftarrow \beta m + (1-\beta) g, \quad u \leftarrow u + \alpha m"
    accumulates = True
    nonnegative = ("weight",)

    decay: Hyper = hyper(default=0.9999, low=0, below=1)
    factor: Hyper = hyper(default=5.0)

    def slots(self, param):
        return {"m": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        return Tick(vars(h), {"weight": weight}, weights._replace(direction=weights.direction + h.factor * weight))

    def apply(self, signal, slots, param, c):
        m = mix(c.decay, c.decay_complement, slots.m, signal.gradient)
        return signal._replace(direction=signal.direction + c.factor * m), {"m": m}


class extrapolate(Rule):
    r"""The direction and a multiple of its last change: d ← u; u ← d + κ(d − d₋).

    d₋ is the direction of the step before. Before an accumulator it edits the gradient that all of them read: that is
    the correction of MARS and the gradient of Adan. Before the learning rate alone it is optimistic gradient descent;
    after it, ``nag_lookahead`` is the same with a name for the point that it holds.

    Args:
        factor: κ, any number.
        first: the d₋ of the first step: "zero", as MARS has it, or "same", which is d itself, so that the first
            direction stays as it is.

    State: ``previous`` like the parameters; ``weight``, the weight of the direction in it (a scalar).

    Weights: w_u ← w_u + κ(w_u − w_u₋).

    Inf and NaN stay in their element, and in its slot until the next step.

    Source: Daskalakis et al. (2018), "Training GANs with optimism"; Yuan et al. (2024), "MARS: unleashing the power of
    variance reduction for training large models".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.extrapolate(1.0, first="same")
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([4.0]), state)
    >>> print(updates)
    [7.]
    """

    equation = r"d \leftarrow u, \quad u \leftarrow d + \kappa (d - d_{t-1})"
    accumulates = False  # in front of accumulators it is a filter: they read what it makes of the gradient

    factor: Hyper = hyper(default=1.0)
    first: str = "zero"

    def __post_init__(self):
        super().__post_init__()
        check_choice("extrapolate", "first", self.first, ("zero", "same"))

    def slots(self, param):
        return {"previous": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        factor = h.factor
        if self.first == "same":
            factor = jnp.where(scalars.weight == 0, 0, factor)
        w = weights.direction
        extrapolated = weights._replace(direction=w + factor * (w - scalars.weight))
        return Tick({"factor": factor}, {"weight": w}, extrapolated)

    def apply(self, signal, slots, param, c):
        u = signal.direction
        return signal._replace(direction=u + c.factor * (u - slots.previous)), {"previous": u}


class add_difference(Rule):
    r"""Adan's correction: d ← βd + (1−β)(g − g₋); u ← u + κd̂; g ← g + κ(g − g₋).

    g₋ is the gradient of the step before, in the first step g itself. The average d of the gradient's changes is
    added to the direction, debiased; the gradient that later accumulators read is the extrapolated one. Between a
    debiased momentum and ``rms`` that is Adan.

    Args:
        decay: β in [0, 1). 0.92 as in the paper (whose β₂ is 1−β).
        factor: κ. None, the default: β, as in the paper.

    State: ``previous`` and ``d`` like the parameters; ``weight``, the total weight in d (a scalar).

    Weights: w_u stays as it is, since a constant gradient has no changes.

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Xie et al. (2022), "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.add_difference(0.5)
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([4.0]), state)
    >>> print(updates)  # 4 + ½·(½·3)/¾
    [5.]
    """

    equation = (
        r"d \leftarrow \beta d + (1-\beta)(g - g_{t-1}), \quad u \leftarrow u + \kappa d / w_d, \quad "
        r"g \leftarrow g + \kappa (g - g_{t-1})"
    )
    accumulates = True
    filters = True
    nonnegative = ("weight",)

    decay: Hyper = hyper(default=0.92, low=0, below=1)
    factor: Hyper | None = hyper(default=None)

    def slots(self, param):
        return {"previous": jnp.zeros_like(param), "d": jnp.zeros_like(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        factor = h.decay if self.factor is None else h.factor
        starts = scalars.weight == 0
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        coefficients = {
            "decay": h.decay,
            "decay_complement": h.decay_complement,
            "factor": factor,
            "gain": factor / weight,
            "known": jnp.where(starts, 0, jnp.ones_like(weight)),
        }
        return Tick(coefficients, {"weight": weight}, weights)

    def apply(self, signal, slots, param, c):
        g = signal.gradient
        change = jnp.where(c.known > 0, g - slots.previous, 0)
        d = mix(c.decay, c.decay_complement, slots.d, change)
        signal = signal._replace(direction=signal.direction + c.gain * d, gradient=g + c.factor * change)
        return signal, {"previous": g, "d": d}
