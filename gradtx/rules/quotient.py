"""From averages to a direction: their weights divided out, and the quotient m/√V."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.limits import check_choice
from gradtx._core.numerics import abs_sq, mix, safe_divide, safe_sqrt
from gradtx._core.signal import Weights
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["debias", "precondition", "rectified_precondition", "scale_by_update_rms"]


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
    debiases = True

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
        power: of v, instead of the root's ½: ⅓ in MADGRAD, ⅛ in Padam, 1 where v is a curvature.
        form: "add", or "max" for u/max(√(v + eps_root), eps), where epsilon is a floor, as in ADOPT.

    A NaN in v or u gives NaN; an infinite v gives 0 for a finite u.

    Source: Kingma & Ba (2015), Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.adagrad_sum(), gradtx.precondition(eps=0.0))
    >>> updates, state = tx.update(jnp.array([5.0, 0.0, -1e-6]), tx.init(jnp.zeros(3)))
    >>> print(updates)
    [ 1.  0. -1.]
    """

    second_moment = "uses"

    eps: Hyper = hyper(default=1e-8, low=0)
    eps_root: Hyper = hyper(default=0.0, low=0)
    power: float = dataclasses.field(default=0.5, kw_only=True)
    form: str = dataclasses.field(default="add", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.power <= 1:
            raise ValueError(f"precondition: power must be a number from 0 to 1, found {self.power!r}")
        check_choice("precondition", "form", self.form, ("add", "max"))

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        half = self.power == 0.5
        root = r"\sqrt{v + \epsilon_r}" if half else r"(v + \epsilon_r)^{" + f"{self.power:.3g}" + "}"
        weight = r"\sqrt{w_v}" if half else f"w_v^{{{self.power:.3g}}}"
        divisor = f"({root} + \\epsilon)" if self.form == "add" else f"\\max({root}, \\epsilon)"
        return rf"u \leftarrow u / {divisor}, \quad w_u \leftarrow w_u / {weight}"

    def _root(self, x: jax.Array) -> jax.Array:
        return safe_sqrt(x) if self.power == 0.5 else x if self.power == 1 else x**self.power

    def tick(self, h, scalars, weights, count):
        w = safe_divide(weights.direction, self._root(weights.second_moment))
        return Tick(vars(h), {}, Weights(w, jnp.ones_like(w)))

    def apply(self, signal, slots, param, c):
        root = self._root(signal.second_moment + c.eps_root)
        denominator = root + c.eps if self.form == "add" else jnp.maximum(root, c.eps)
        return signal._replace(direction=safe_divide(signal.direction, denominator), second_moment=None), {}


class scale_by_update_rms(Rule):
    r"""Multiply by the root of the average of past squared updates: u ← u·√(x + ε); then x ← ρx + (1−ρ)|u|².

    AdaDelta's numerator, which gives a step the units of the parameters. The average is that of before this step, so
    the first step is √ε times the direction.

    Args:
        decay: ρ in [0, 1). 0.95 as in the paper.
        eps_root: ε ≥ 0. 1e-6 as in the paper; with 0 nothing ever moves.

    State: ``x`` like the parameters, real.

    Inf and NaN stay in their element, and in its slot from then on.

    Source: Zeiler (2012), "ADADELTA: an adaptive learning rate method".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale_by_update_rms(0.5, 0.01)
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> print(updates, state.slots["scale_by_update_rms"]["x"].round(4))
    [0.2] [0.02]
    """

    equation = r"u \leftarrow u \sqrt{x + \epsilon}, \quad x \leftarrow \rho x + (1-\rho) \lvert u\rvert^2"
    accumulates = True
    normalizes = True
    nonnegative = ("x",)

    decay: Hyper = hyper(default=0.95, low=0, below=1)
    eps_root: Hyper = hyper(default=1e-6, low=0)

    def slots(self, param):
        return {"x": jnp.zeros_like(param.real)}

    def apply(self, signal, slots, param, c):
        u = signal.direction * safe_sqrt(slots.x + c.eps_root)
        return signal._replace(direction=u), {"x": mix(c.decay, c.decay_complement, slots.x, abs_sq(u))}


class rectified_precondition(Rule):
    r"""``precondition`` only once v is to be relied on: u ← r·u/(√v + ε), before that u as it is.

    How many gradients v averages is ρ = 1 + 2·(their mean age), which grows from 1 to R = (1+β)/(1−β). From ρ > 5 on
    steps are divided, times the correction r² = (ρ−4)(ρ−2)R / ((R−4)(R−2)ρ) of a variance that is still too large.

    Args:
        decay: β in [0, 1) of the ``rms`` before it; of another average a schedule, as ``lambda count: count / (count +
            1.0)`` of ``adagrad_sum`` and ``debias``, where ρ is the number of steps.
        eps: ε ≥ 0, outside the root. 1e-8.
        threshold: of ρ, at least 4, below which r² means nothing. 5 as in torch; the paper has 4.
        eps_root: ≥ 0, inside the root, as in optax. None, for none.

    Uses v up. Carries the weights: w_u ← w_u/√w_v where it divides. State: ``age`` and ``weight``, of an average with
    the decay β (scalars); ρ is 1 + 2·age/weight.

    Inf and NaN stay in their element.

    Raises:
        ValueError: for a ``threshold`` below 4.

    Source: Liu et al. (2020), "On the variance of the adaptive learning rate and beyond".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, seen = gradtx.chain(gradtx.rms(0.99), gradtx.debias(), gradtx.rectified_precondition(0.99)), []
    >>> state = tx.init(jnp.zeros(1))
    >>> for _ in range(7):
    ...     updates, state = tx.update(jnp.array([2.0]), state)
    ...     seen.append(round(float(updates[0]), 2))
    >>> print(seen)
    [2.0, 2.0, 2.0, 2.0, 2.0, 0.08, 0.1]
    """

    equation = (
        r"u \leftarrow r_t u / (\sqrt{v} + \epsilon) \text{ if } \rho_t > 5, \quad \rho_t = 1 + 2 a_t / w_t, \quad "
        r"a \leftarrow \beta (a + w)"
    )
    second_moment = "uses"
    nonnegative = ("age", "weight")

    decay: Hyper = hyper(default=0.999, low=0, below=1)
    eps: Hyper = hyper(default=1e-8, low=0)
    threshold: float = 5.0
    eps_root: Hyper | None = hyper(default=None, low=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.threshold >= 4:
            raise ValueError(f"rectified_precondition: threshold must be at least 4, found {self.threshold!r}")

    def scalars(self):
        return {"age": 0.0, "weight": 0.0}

    def tick(self, h, scalars, weights, count):
        age = h.decay * (scalars.age + scalars.weight)
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        rho = 1 + 2 * age / weight
        most = jnp.maximum((1 + h.decay) / h.decay_complement, rho)  # below it just after the decay fell
        divides = rho > self.threshold
        share = safe_divide((rho - 4) * (rho - 2) * most, (most - 4) * (most - 2) * rho)
        gain = jnp.sqrt(jnp.where(divides, share, 1))
        w = safe_divide(weights.direction, safe_sqrt(weights.second_moment))
        after = Weights(jnp.where(divides, w, weights.direction), jnp.ones_like(w))
        coefficients = {"divides": jnp.where(divides, jnp.ones_like(gain), 0), "gain": gain, "eps": h.eps}
        if self.eps_root is not None:
            coefficients["eps_root"] = h.eps_root
        return Tick(coefficients, {"age": age, "weight": weight}, after)

    def apply(self, signal, slots, param, c):
        u = signal.direction
        v = signal.second_moment if self.eps_root is None else signal.second_moment + c.eps_root
        divided = c.gain * safe_divide(u, safe_sqrt(v) + c.eps)
        return signal._replace(direction=jnp.where(c.divides > 0, divided, u), second_moment=None), {}
