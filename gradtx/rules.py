"""The elementary rules. Each is what happens to one array, and once per step to its scalars.

In every rule g, u and v are the lanes of the signal (gradient, direction, second moment); m, b and s are state.
Shapes are those of the leaf; arithmetic is in float32 or wider. Unless a rule says otherwise, inf and NaN in an
element stay in that element (and, where there is state, in its later updates).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from gradtx._chain import Hyper, Rule, hyper
from gradtx._maths import Tick
from gradtx._numerics import abs_sq, l2_norm, safe_divide, safe_sqrt
from gradtx._signal import Weights


def _mix(decay: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * old + (1 - decay) * new


def _zeros(param: jax.Array) -> jax.Array:
    return jnp.zeros_like(param)


def _real_zeros(param: jax.Array) -> jax.Array:
    return jnp.zeros_like(param, dtype=jnp.finfo(param.dtype).dtype)


# --- first moments ------------------------------------------------------------------------------------------------


class momentum(Rule):
    r"""Exponential moving average of the direction: m ← βm + (1−β)u; u ← m.

    The review article's momentum. The average starts at zero; ``debias`` corrects that. Equal to ``trace`` up to the
    factor 1−β.

    Args:
        decay: β in [0, 1). 0.9 as everywhere; the article advises 0.85 to 0.95.

    State: ``m`` like the parameters; ``weight``, the total weight in m (a scalar).

    Source: Polyak (1964) for the idea; Kingma & Ba (2015), Algorithm 1, for this form.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.momentum(0.9)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.1 -0.2]
    """

    equation = r"m \leftarrow \beta m + (1-\beta) u, \quad u \leftarrow m"
    accumulates = True

    decay: Hyper = hyper(default=0.9, low=0, below=1)

    def slots(self, param):
        return {"m": _zeros(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = _mix(h.decay, scalars.weight, weights.direction)
        return Tick({"decay": h.decay}, {"weight": weight}, weights._replace(direction=weight))

    def apply(self, signal, slots, param, c):
        m = _mix(c.decay, slots.m, signal.direction)
        return signal._replace(direction=m), {"m": m}


class trace(Rule):
    r"""Heavy ball: b ← μb + u; u ← b. With ``nesterov``, u ← u + μb instead.

    ``nesterov=True`` is the form of torch and optax. Before a constant learning rate it is Nesterov's method, and the
    parameters held are the looked-ahead points; for a learning rate that changes, ``nag_lookahead`` is exact.

    Args:
        decay: μ in [0, 1). 0.9 as everywhere.
        nesterov: whether the direction looks one step ahead.

    State: ``b`` like the parameters; ``weight``, the total weight in b (a scalar).

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

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    nesterov: bool = False

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        return r"b \leftarrow \mu b + u, \quad u \leftarrow " + (r"u + \mu b" if self.nesterov else "b")

    def slots(self, param):
        return {"b": _zeros(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = h.decay * scalars.weight + weights.direction
        out = weights.direction + h.decay * weight if self.nesterov else weight
        return Tick({"decay": h.decay}, {"weight": weight}, weights._replace(direction=out))

    def apply(self, signal, slots, param, c):
        u = signal.direction
        b = c.decay * slots.b + u
        return signal._replace(direction=u + c.decay * b if self.nesterov else b), {"b": b}


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

    Source: Dozat (2016), "Incorporating Nesterov momentum into Adam".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.nesterov(0.9)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates.round(4))
    [ 1.4737 -2.9474]
    """

    accumulates = True
    equation = (
        r"m \leftarrow \beta m + (1-\beta) u, \quad "
        r"u \leftarrow \mu_{t+1} m / (1-P_{t+1}) + (1-\mu_t) u / (1-P_t)"
    )

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    schedule_decay: Hyper | None = hyper(default=None, low=0)

    def slots(self, param):
        return {"m": _zeros(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        mu, upcoming_mu = h.decay, self.upcoming("decay", h, count)
        if self.schedule_decay is not None:
            mu = mu * self._share(h.schedule_decay, count + 1)
            upcoming_mu = upcoming_mu * self._share(self.upcoming("schedule_decay", h, count), count + 2)
        # 1−P is the weight of an average with decays μ: carried along, it does not cancel as 1 − β**t would.
        weight = _mix(mu, scalars.weight, jnp.ones_like(mu))
        upcoming_weight = _mix(upcoming_mu, weight, jnp.ones_like(mu))
        past, present = safe_divide(upcoming_mu, upcoming_weight), safe_divide(1 - mu, weight)
        return Tick({"decay": h.decay, "past": past, "present": present}, {"weight": weight}, weights)

    @staticmethod
    def _share(schedule_decay: jax.Array, t: jax.Array) -> jax.Array:
        return 1 - 0.5 * 0.96 ** (schedule_decay * t)

    def apply(self, signal, slots, param, c):
        m = _mix(c.decay, slots.m, signal.direction)
        return signal._replace(direction=c.past * m + c.present * signal.direction), {"m": m}


# --- second moments -----------------------------------------------------------------------------------------------


class rms(Rule):
    r"""Exponential moving average of the squared gradient: s ← βs + (1−β)|g|²; v ← s.

    The average starts at zero; ``debias`` corrects that. For complex gradients |g|² is the squared modulus, and s is
    real.

    Args:
        decay: β in [0, 1). 0.9 as Hinton's; Adam takes 0.999.

    State: ``s`` like the parameters, real; ``weight``, the total weight in s (a scalar).

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
        return {"s": _real_zeros(param)}

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = _mix(h.decay, scalars.weight, jnp.ones_like(h.decay))
        return Tick({"decay": h.decay}, {"weight": weight}, weights._replace(second_moment=weight))

    def apply(self, signal, slots, param, c):
        s = _mix(c.decay, slots.s, abs_sq(signal.gradient))
        return signal._replace(second_moment=s), {"s": s}


class monotone_rms(rms):
    r"""The review article's max-V: s ← max(βs + (1−β)|g|², s); v ← s.

    The maximum is fed back into the average, so v never falls and steps never grow. This is not AMSGrad (``rms,
    max_v``), whose average forgets; its v is never smaller than AMSGrad's.

    Args:
        decay: β in [0, 1). 0.9 as in ``rms``.

    State: as ``rms``. The weight is that of ``rms``, which is exact for a constant gradient.

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
        s = jnp.maximum(_mix(c.decay, slots.s, abs_sq(signal.gradient)), slots.s)
        return signal._replace(second_moment=s), {"s": s}


class adagrad_sum(Rule):
    r"""Sum of the squared gradients: s ← s + |g|²; v ← initial + s.

    Args:
        initial: what the sum starts at, ≥ 0. 0 as in the paper; optax and Keras start at 0.1.

    State: ``s`` like the parameters, real. The weight of v is the number of steps, so that ``debias`` makes v a mean.

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
        return {"s": _real_zeros(param)}

    def tick(self, h, scalars, weights, count):
        return Tick(vars(h), {}, weights._replace(second_moment=(count + 1).astype(weights.second_moment.dtype)))

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
    second_moment = "edits"

    def slots(self, param):
        return {"s": _real_zeros(param)}

    def apply(self, signal, slots, param, c):
        s = jnp.maximum(slots.s, signal.second_moment)
        return signal._replace(second_moment=s), {"s": s}


# --- from averages to a direction ---------------------------------------------------------------------------------


class debias(Rule):
    r"""Divide averages by their weights: u ← u/w_u; v ← v/w_v; then both weights are 1.

    An average that starts at zero is too small at first. The weights are carried along the chain (see ``Weights``),
    so this is right for an exponential average (where the weight is 1 − βᵗ), for heavy ball and for a sum, and for
    decays that vary. After ``precondition`` it is the "epsilon hat" form of Adam. Nothing averaged yet: nothing
    changes.

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


# --- scaling the direction ----------------------------------------------------------------------------------------


class scale(Rule):
    r"""Multiply by a factor: u ← a·u.

    Args:
        factor: a, any number.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale(-0.5)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [-0.5  1. ]
    """

    equation = r"u \leftarrow a u"

    factor: Hyper = hyper()

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.factor * signal.direction), {}


class sign(Rule):
    r"""Keep the sign: u ← sign(u), which is 0 at 0 (and NaN at NaN).

    Raises:
        TypeError: for complex leaves.

    Source: Riedmiller & Braun (1993); Bernstein et al. (2018), "signSGD".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.sign()
    >>> updates, state = tx.update(jnp.array([3.0, 0.0, -0.1]), tx.init(jnp.zeros(3)))
    >>> print(updates)
    [ 1.  0. -1.]
    """

    equation = r"u \leftarrow \mathrm{sign}(u)"
    real_only = True

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.sign(signal.direction)), {}


class scale_by_learning_rate(Rule):
    r"""The step downhill: u ← −η·u.

    Args:
        learning_rate: η, a number, a scalar array or a schedule; the first step sees the schedule at count 0.

    >>> import gradtx, jax.numpy as jnp, optax
    >>> tx = gradtx.scale_by_learning_rate(optax.linear_schedule(0.5, 0.0, 10))
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> print(updates, state.hyperparams["scale_by_learning_rate"]["learning_rate"])
    [-0.5] 0.5
    """

    equation = r"u \leftarrow -\eta u"

    learning_rate: Hyper = hyper()

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=-c.learning_rate * signal.direction), {}


class add_decayed_weights(Rule):
    r"""Weight decay: u ← u + λ·p, p being the parameters.

    At the front of a chain it is L2 regularisation (the decay goes through momentum and preconditioning); just
    before the learning rate it is the decoupled decay of AdamW. Needs ``params`` in ``update``.

    Args:
        rate: λ ≥ 0.

    Source: Loshchilov & Hutter (2019), "Decoupled weight decay regularization".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.add_decayed_weights(0.1), jnp.array([10.0])
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(params), params)
    >>> print(updates)
    [2.]
    """

    equation = r"u \leftarrow u + \lambda p"
    needs_params = True

    rate: Hyper = hyper(low=0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction + c.rate * param), {}


# --- clipping -----------------------------------------------------------------------------------------------------


class clip_by_value(Rule):
    r"""Clip each element to [−limit, limit]. Infinite elements become ±limit; NaN stays NaN.

    Args:
        limit: ≥ 0.

    Raises:
        TypeError: for complex leaves.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_value(1.0)
    >>> updates, state = tx.update(jnp.array([0.5, -3.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [ 0.5 -1. ]
    """

    equation = r"u \leftarrow \min(\max(u, -c), c)"
    real_only = True

    limit: Hyper = hyper(low=0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.clip(signal.direction, -c.limit, c.limit)), {}


class clip_by_norm(Rule):
    r"""Shrink each leaf whose L2 norm exceeds the limit to that norm: u ← u·min(1, limit/‖u‖).

    Within the limit a leaf stays as it is, to the last bit. The norm is taken in float32 or wider and does not
    overflow. A
    leaf with an inf or NaN in it has no norm, and becomes NaN as a whole: never a silent zero.

    Args:
        limit: ≥ 0.

    Source: Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_norm(1.0)
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [0.6 0.8]
    """

    equation = r"u \leftarrow u \min(1, c / \lVert u\rVert)"
    scope = "leaf"

    limit: Hyper = hyper(low=0)

    def measure(self, directions: Sequence[jax.Array]) -> jax.Array:
        return l2_norm(directions)

    def settle(self, c: SimpleNamespace, measured: jax.Array) -> dict[str, jax.Array]:
        factor = jnp.where(measured > c.limit, safe_divide(c.limit, measured), 1)
        return {"factor": jnp.where(jnp.isfinite(measured), factor, jnp.nan)}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.factor * signal.direction), {}


class clip_by_global_norm(clip_by_norm):
    r"""Shrink all leaves together if their joint L2 norm exceeds the limit: u ← u·min(1, limit/‖all u‖).

    Keeps the direction of the whole update, which is why the review article prefers it. Otherwise as
    ``clip_by_norm``: one inf or NaN anywhere makes every leaf NaN.

    Args:
        limit: ≥ 0.

    Source: Pascanu, Mikolov & Bengio (2013), Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.clip_by_global_norm(1.0), {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates["a"], updates["b"])
    [0.6] [0.8]
    """

    equation = r"u \leftarrow u \min(1, c / \lVert (u_1, u_2, \dots)\rVert)"
    scope = "tree"


# --- looking ahead ------------------------------------------------------------------------------------------------


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
        return {"offset": _zeros(param)}

    def tick(self, h, scalars, weights, count):
        return Tick({"factor": self.upcoming("factor", h, count)}, {}, weights)

    def apply(self, signal, slots, param, c):
        offset = c.factor * signal.direction
        return signal._replace(direction=signal.direction + (offset - slots.offset)), {"offset": offset}
