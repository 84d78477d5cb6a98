"""Rules that scale the direction, or add to it."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = [
    "add_cautious_decay",
    "add_decayed_weights",
    "arctan",
    "decay_weights",
    "freeze",
    "scale",
    "scale_by_inverse_time",
    "scale_by_learning_rate",
    "sign",
    "skip_first",
]


class scale(Rule):
    r"""Multiply by a factor: u ← a·u.

    Args:
        factor: a, any number.

    Inf and NaN stay in their element.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale(-0.5)
    >>> updates, state = tx.update(jnp.array([1.0, -2.0]), tx.init(jnp.zeros(2)))
    >>> print(updates)
    [-0.5  1. ]
    """

    equation = r"u \leftarrow a u"

    factor: Hyper = hyper()

    def scales_by(self, h):
        return h.factor

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.factor * signal.direction), {}


class freeze(Rule):
    r"""Keep parameters as they are: u ← 0, whatever came in (0 also for inf and NaN).

    As the last rule, and ``where`` says for which leaves: a decay after it would move them all the same. State of the
    rules before it is kept for them; ``partition`` keeps none.

    Leaves that it freezes may be anything: integers and bools, of a quantized model, random keys. No rule keeps state
    for them, and their gradients may be None or, as ``jax.grad(..., allow_int=True)`` gives them, float0. Their updates
    are zeros, in the leaf's dtype if ``update`` gets the parameters; None where the gradient is None. ``step`` leaves
    such parameters as they are.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.sgd(1.0), gradtx.where("embed", gradtx.freeze()))
    >>> g = {"embed": jnp.ones(1), "head": jnp.ones(1)}
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates["embed"], updates["head"])
    [0.] [-1.]
    """

    equation = r"u \leftarrow 0"
    freezes = True

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.zeros_like(signal.direction)), {}


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
    normalizes = True

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=jnp.sign(signal.direction)), {}


class scale_by_learning_rate(Rule):
    r"""The step downhill: u ← −η·u.

    Args:
        learning_rate: η, a number, a scalar array or a schedule; the first step sees the schedule at count 0.

    Inf and NaN stay in their element.

    >>> import gradtx, jax.numpy as jnp, optax
    >>> tx = gradtx.scale_by_learning_rate(optax.linear_schedule(0.5, 0.0, 10))
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> print(updates, state.hyperparams["scale_by_learning_rate"]["learning_rate"])
    [-0.5] 0.5
    """

    equation = r"u \leftarrow -\eta u"

    learning_rate: Hyper = hyper()

    def scales_by(self, h):
        return -h.learning_rate

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=-c.learning_rate * signal.direction), {}


class scale_by_inverse_time(Rule):
    r"""Divide by a time that grows linearly: u ← u/(1 + r·t), where t is the number of steps before this one.

    torch's ``lr_decay`` of Adagrad, beside any schedule of the learning rate.

    Args:
        rate: r ≥ 0.

    Inf and NaN stay in their element.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_inverse_time(1.0), jnp.array([6.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> updates, state = tx.update(g, state)
    >>> print(updates)
    [3.]
    """

    equation = r"u \leftarrow u / (1 + r t)"

    rate: Hyper = hyper(low=0)

    def tick(self, h, scalars, weights, count):
        return Tick({"time": 1 + h.rate * count.astype(h.rate.dtype)}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction / c.time), {}


class add_decayed_weights(Rule):
    r"""Weight decay: u ← u + λ·p, p being the parameters.

    At the front of a chain it is L2 regularisation (the decay goes through momentum and preconditioning); just
    before the learning rate it is the decoupled decay of AdamW. Needs ``params`` in ``update``.

    Args:
        rate: λ ≥ 0.

    Inf and NaN stay in their element.

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


class decay_weights(Rule):
    r"""Decoupled weight decay after the learning rate: u ← u − ηλ·p, p being the parameters.

    The decay that ``add_decayed_weights`` makes before the learning rate, for chains that have the rate inside the
    momentum, as those of Keras: there the decay must not go through the momentum. Needs ``params`` in ``update``.

    Args:
        learning_rate: η, the same number or schedule as in the chain.
        rate: λ ≥ 0.

    Inf and NaN stay in their element.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.decay_weights(0.5, 0.1), jnp.array([10.0])
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(params), params)
    >>> print(updates)
    [0.5]
    """

    equation = r"u \leftarrow u - \eta \lambda p"
    needs_params = True

    learning_rate: Hyper = hyper()
    rate: Hyper = hyper(low=0)

    def tick(self, h, scalars, weights, count):
        return Tick({"rate": h.learning_rate * h.rate}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction - c.rate * param), {}


class arctan(Rule):
    r"""Bound the direction smoothly: u ← a·atan(u/b).

    After ``precondition(eps=0)`` it is a·atan2(m, b√v), Adam without an epsilon, which does not depend on the scale
    of the gradients at all.

    Args:
        scale: a. 1.27 as in the paper: about 4/π, so that a direction of 1 stays 1.
        width: b > 0. 1 as in the paper.

    An infinite element becomes ±aπ/2; NaN stays NaN.

    Raises:
        TypeError: for complex leaves.

    Source: Everett et al. (2024), "Scaling exponents across parameterizations and optimizers".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.arctan()
    >>> updates, state = tx.update(jnp.array([0.0, 1.0, -100.0]), tx.init(jnp.zeros(3)))
    >>> print([round(float(u), 2) for u in updates])
    [0.0, 1.0, -1.98]
    """

    equation = r"u \leftarrow a \, \mathrm{atan}(u / b)"
    real_only = True

    scale: Hyper = hyper(default=1.27)
    width: Hyper = hyper(default=1.0, above=0)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.scale * jnp.arctan(signal.direction / c.width)), {}


class skip_first(Rule):
    r"""Leave out the first directions: u ← 0 with weight 0, so that no average behind it knows of them.

    The gradient lane goes on as it is: ``rms`` and its like behind it see the gradients that are left out. For methods
    whose first gradients only start a second moment or a basis, as those of SOAP do.

    Args:
        steps: how many, ≥ 0. 1.

    Weights: w_u ← 0 in these steps.

    Inf and NaN become 0 in the directions that are left out, and stay in their element afterwards.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.skip_first(), gradtx.momentum(0.9), gradtx.debias())
    >>> updates, state = tx.update(jnp.array([9.0]), tx.init(jnp.zeros(1)))
    >>> print(updates, tx.update(jnp.array([2.0]), state)[0])
    [0.] [2.]
    """

    equation = r"u \leftarrow u \, [t > k], \quad w_u \leftarrow w_u \, [t > k]"
    accumulates = True  # so that what is behind it reads the gradients that it leaves out

    steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 0:
            raise ValueError(f"skip_first: steps must be an integer, 0 or more, found {self.steps!r}")

    def tick(self, h, scalars, weights, count):
        counts = jnp.where(count < self.steps, 0, jnp.ones_like(weights.direction))
        return Tick({"counts": counts}, {}, weights._replace(direction=counts * weights.direction))

    def apply(self, signal, slots, param, c):
        u = signal.direction
        return signal._replace(direction=jnp.where(c.counts > 0, u, jnp.zeros_like(u))), {}


class add_cautious_decay(Rule):
    r"""Weight decay only where the step shrinks the weight anyway: u ← u + λ·p·[u·p ≥ 0], p being the parameters.

    The decay never works against the gradient's step. Just before the learning rate, in place of
    ``add_decayed_weights``. Needs ``params`` in ``update``.

    Args:
        rate: λ ≥ 0.

    Inf and NaN stay in their element; a NaN in u or p leaves the decay out.

    Raises:
        TypeError: for complex leaves.

    Source: Chen et al. (2025), "Cautious weight decay".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.add_cautious_decay(0.1), jnp.array([10.0, 10.0])
    >>> print(tx.update(jnp.array([1.0, -1.0]), tx.init(params), params)[0])
    [ 2. -1.]
    """

    equation = r"u \leftarrow u + \lambda p \, [u p \geq 0]"
    needs_params = True
    real_only = True

    rate: Hyper = hyper(low=0)

    def apply(self, signal, slots, param, c):
        u = signal.direction
        agrees = jnp.sign(u) * jnp.sign(param) >= 0
        return signal._replace(direction=u + jnp.where(agrees, c.rate * param, 0)), {}
