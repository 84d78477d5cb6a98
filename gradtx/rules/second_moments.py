"""Rules that make or edit the second moment."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.limits import check_choice
from gradtx._core.numerics import abs_sq, fade, mix
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["adagrad_sum", "belief_rms", "centered_rms", "infinity", "lag_v", "max_v", "monotone_rms", "rms", "yogi_rms"]


class rms(Rule):
    r"""Exponential moving average of the squared gradient: s ← βs + (1−β)|g|²; v ← s.

    The average starts at zero; ``debias`` corrects that. For complex gradients |g|² is the squared modulus, and s is
    real. A gradient whose square overflows, above 1.8e19 in float32, makes v infinite, and the step 0 from then on (for
    β = 0 in that step, and NaN then).

    Args:
        decay: β in [0, 1). 0.9 as Hinton's; Adam takes 0.999.
        start: "zero", or "first": the average starts at the first |g|², with β = 0 in its step, as in ADOPT.

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
    holds = {"s": "square"}
    nonnegative = ("s", "weight")
    second_moment = "makes"

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    start: str = dataclasses.field(default="zero", kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_choice(self.label, "start", self.start, ("zero", "first"))

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        decay, complement = h.decay, h.decay_complement
        if self.start == "first":
            starts = scalars.weight == 0
            decay, complement = jnp.where(starts, 0, decay), jnp.where(starts, 1, complement)
        weight = mix(decay, complement, scalars.weight, jnp.ones_like(decay))
        coefficients = {"decay": decay, "decay_complement": complement}
        return Tick(coefficients, {"weight": weight}, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        s = mix(c.decay, c.decay_complement, slots.s, abs_sq(signal.gradient))
        return signal._replace(second_moment=s), {"s": s}


class monotone_rms(rms):
    r"""The review article's max-V: s ← max(βs + (1−β)|g|², s); v ← s.

    The maximum is fed back into the average, so v never falls and steps never grow. This is not AMSGrad (``rms,
    max_v``), whose average forgets; its v is never smaller than AMSGrad's.

    Args:
        decay: β in [0, 1). 0.9 as in ``rms``.
        start: as in ``rms``.

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
    holds = {}  # no average of squares, though it derives from one

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
    holds = {"m": "center", "d": "variance"}
    nonnegative = ("d", "weight")
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
    holds = {"s": "sum"}
    nonnegative = ("s",)
    second_moment = "makes"

    initial: Hyper = hyper(default=0.0, low=0)

    def from_moment(self, slot, moment, h):
        return moment - h.initial  # others add it to the sum once and for all

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def tick(self, h, scalars, weights, count):
        return Tick(vars(h), {}, weights._replace(second_moment=count.astype(weights.second_moment.dtype) + 1))

    def apply(self, signal, slots, param, c):
        s = slots.s + abs_sq(signal.gradient)
        return signal._replace(second_moment=c.initial + s), {"s": s}


class max_v(Rule):
    r"""AMSGrad's maximum over time: s ← max(δs, v); v ← s.

    Before ``debias`` it is torch's and Keras's AMSGrad, after it optax's, and without ``debias`` the paper's. With a
    decay the maximum forgets: after ``rms(0)``, which is |g|² itself, a δ of β₂² makes Adamax.

    Args:
        decay: δ in [0, 1]; None, the default, is 1: nothing is forgotten.

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

    accumulates = False
    holds = {"s": "maximum"}
    nonnegative = ("s",)
    second_moment = "edits"

    decay: Hyper | None = hyper(default=None, low=0, high=1)

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        return r"s \leftarrow \max(" + ("" if self.decay is None else r"\delta ") + r"s, v), \quad v \leftarrow s"

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def apply(self, signal, slots, param, c):
        faded = slots.s if self.decay is None else c.decay * slots.s
        s = jnp.maximum(faded, signal.second_moment)
        return signal._replace(second_moment=s), {"s": s}


class infinity(Rule):
    r"""Adamax's infinity norm of the gradients: s ← max(βs, |g| + ε); v ← s².

    ``max_v(β²)`` after ``rms(0)`` is the same without ε. With it, the epsilon is part of the norm, as in torch and
    optax, and the quotient needs none.

    Args:
        decay: β in [0, 1). 0.999 as in the paper.
        eps: ε ≥ 0. The paper has none; 1e-8 is torch's and optax's.
        power: 2, or 1 for v ← s and ``precondition(power=1)`` behind it: the same quotient without a square, which
            overflows above 1.8e19 in float32, and is 0 below 1e-19.

    State: ``s`` like the parameters, real. v has weight 1: the maximum starts with the first gradient.

    Inf and NaN stay in their element, and in its slot from then on.

    Source: Kingma & Ba (2015), Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.infinity(0.5, 0.0), gradtx.precondition(0.0))
    >>> updates, state = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([1.0]), state)
    >>> print(updates)
    [0.5]
    """

    accumulates = True
    nonnegative = ("s",)
    second_moment = "makes"

    decay: Hyper = hyper(default=0.999, low=0, below=1)
    eps: Hyper = hyper(default=1e-8, low=0)
    power: int = dataclasses.field(default=2, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_choice("infinity", "power", self.power, (1, 2))

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        square = "^2" if self.power == 2 else ""
        return r"s \leftarrow \max(\beta s, \lvert g\rvert + \epsilon), \quad v \leftarrow s" + square

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def tick(self, h, scalars, weights, count):
        return Tick(vars(h), {}, weights._replace(second_moment=jnp.ones_like(h.decay)))

    def apply(self, signal, slots, param, c):
        s = jnp.maximum(c.decay * slots.s, abs(signal.gradient) + c.eps)
        return signal._replace(second_moment=abs_sq(s) if self.power == 2 else s), {"s": s}


class yogi_rms(Rule):
    r"""Yogi's additive second moment: s ← s − (1−β)·sign(s − |g|²)·|g|²; v ← s.

    Where the average of ``rms`` changes in proportion to its distance from |g|², this one changes in proportion to
    |g|² alone, so that a v that was large falls slowly.

    Args:
        decay: β in [0, 1). 0.999 as in the paper.
        initial: what s starts at, ≥ 0. 0 here; 1e-6 in optax.

    State: ``s`` like the parameters, real; ``weight`` (a scalar). The weight is that of ``rms``, by convention: the
    rule is no linear average.

    Inf and NaN stay in their element, and in its slot from then on.

    Source: Zaheer et al. (2018), "Adaptive methods for nonconvex optimization".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.yogi_rms(0.5), gradtx.precondition(0.0))
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> updates, state = tx.update(jnp.array([1.0]), state)
    >>> print(state.slots["yogi_rms"]["s"])
    [1.5]
    """

    equation = (
        r"s \leftarrow s - (1-\beta) \, \mathrm{sign}(s - \lvert g\rvert^2) \lvert g\rvert^2, \quad v \leftarrow s"
    )
    accumulates = True
    nonnegative = ("s", "weight")
    second_moment = "makes"

    decay: Hyper = hyper(default=0.999, low=0, below=1)
    initial: Hyper = hyper(default=0.0, low=0)

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        start = jnp.where(scalars.weight == 0, h.initial, 0)
        return Tick(vars(h) | {"start": start}, {"weight": weight}, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        squared, before = abs_sq(signal.gradient), slots.s + c.start
        change = jnp.where(before == squared, 0, jnp.sign(before - squared) * squared)  # both may be infinite
        s = before - c.decay_complement * change
        return signal._replace(second_moment=s), {"s": s}


class belief_rms(Rule):
    r"""The distance of the gradient from its average: m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)|g−m|² + ε; v ← s.

    AdaBelief's: the direction becomes m as well, so this one rule is the momentum of the chain. With ``lagged`` the
    distance is from the average before this gradient, and the direction stays as it is: ACProp's.

    Args:
        decay: β₁ in [0, 1). 0.9 as in the paper.
        second_decay: β₂ in [0, 1). 0.999 as in the paper.
        eps: ε ≥ 0, added to s in each step, and so accumulated, as the paper has it. 0 here; its authors take 1e-16.
        lagged: whether the distance is from the average of before.

    State: ``m`` like the parameters; ``s`` likewise, real; ``weight`` and ``second_weight``, their weights (scalars).

    Inf and NaN stay in their element, and in its slots from then on.

    Source: Zhuang et al. (2020), "AdaBelief optimizer"; Zhuang et al. (2021), "Momentum centering and asynchronous
    update for adaptive gradient methods".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.belief_rms(0.5, 0.5), gradtx.precondition(0.0))
    >>> updates, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> print(state.slots["belief_rms"]["m"], state.slots["belief_rms"]["s"])
    [1.] [0.5]
    """

    accumulates = True
    nonnegative = ("s", "weight", "second_weight")
    second_moment = "makes"

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    second_decay: Hyper = hyper(default=0.999, low=0, below=1)
    eps: Hyper = hyper(default=0.0, low=0)
    lagged: bool = False

    @property
    def holds(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        return {} if self.lagged else {"m": "average"}

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        average = r"m_{t-1}" if self.lagged else "m"
        squares = r"s \leftarrow \beta_2 s + (1-\beta_2) \lvert g - " + average + r"\rvert^2 + \epsilon"
        return r"m \leftarrow \beta_1 m + (1-\beta_1) g, \quad " + squares + r", \quad v \leftarrow s"

    def slots(self, param):
        return {"m": jnp.zeros_like(param), "s": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0, "second_weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        second = mix(h.second_decay, h.second_decay_complement, scalars.second_weight, jnp.ones_like(h.decay))
        direction = weights.direction if self.lagged else weight
        after = {"weight": weight, "second_weight": second}
        return Tick(vars(h), after, weights._replace(direction=direction, second_moment=second))

    def apply(self, signal, slots, param, c):
        g = signal.gradient
        m = mix(c.decay, c.decay_complement, slots.m, g)
        distance = abs_sq(g - (slots.m if self.lagged else m))
        s = mix(c.second_decay, c.second_decay_complement, slots.s, distance) + c.eps
        direction = signal.direction if self.lagged else m
        return signal._replace(direction=direction, second_moment=s), {"m": m, "s": s}


class lag_v(Rule):
    r"""The second moment of the step before: v ← v₋, so that a gradient is never divided by a root of itself.

    Args:
        first: the first step, which has no v₋: "skip", no step, u ← 0, as ADOPT has it; or "one", v ← 1, as ACProp.

    State: ``s`` like the parameters, real, the v that comes next; ``weight``, its weight (a scalar).

    Inf and NaN in v come one step later, and stay in the slot for that time.

    Source: Taniguchi et al. (2024), "ADOPT: modified Adam can converge with any β₂ with the optimal rate"; Zhuang et
    al. (2021) for ACProp.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.rms(0.0), gradtx.lag_v(), gradtx.precondition(0.0))
    >>> state = tx.init(jnp.zeros(1))
    >>> for g in (2.0, 6.0, 3.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    ...     print(updates)
    [0.]
    [3.]
    [0.5]
    """

    equation = r"v \leftarrow v_{t-1}"
    accumulates = False
    nonnegative = ("s", "weight")
    second_moment = "edits"

    first: str = "skip"

    def __post_init__(self):
        super().__post_init__()
        check_choice("lag_v", "first", self.first, ("skip", "one"))

    def slots(self, param):
        return {"s": jnp.zeros_like(param.real)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        starts = scalars.weight == 0
        weight = jnp.where(starts, 1, scalars.weight)
        one = jnp.ones_like(weight)
        after = {"weight": weights.second_moment.astype(weight.dtype)}
        return Tick({"starts": jnp.where(starts, one, 0)}, after, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        starts = c.starts > 0
        u, v = signal.direction, jnp.where(starts, 1, slots.s)
        if self.first == "skip":
            u = jnp.where(starts, 0, u)
        return signal._replace(direction=u, second_moment=v), {"s": signal.second_moment}
