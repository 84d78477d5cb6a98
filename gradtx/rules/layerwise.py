"""Rules that scale each leaf by numbers taken over the whole of it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.dtypes import promoted
from gradtx._core.mesh import size_of
from gradtx._core.numerics import abs_sq, in_two, norms, on_each, real_dtype, real_product, safe_divide, safe_sqrt
from gradtx.rules.base import Hyper, Rule, hyper
from gradtx.rules.clipping import shortening

__all__ = [
    "cautious",
    "clip_by_gradient_rms",
    "clip_by_rms",
    "project_out",
    "scale_by_parameter_rms",
    "scale_by_trust_ratio",
]


class scale_by_trust_ratio(Rule):
    r"""Layer-wise step length: u ← u·c‖p‖/(‖u‖ + ε), p being the parameters.

    The step of each leaf becomes a share c of its weights' norm, whatever the size of its gradients. Where either norm
    is 0, u stays as it is. Needs ``params`` in ``update``.

    Args:
        coefficient: c ≥ 0. 1 as in LAMB; LARS takes 0.001.
        eps: ε ≥ 0. 0.
        floor: ≥ 0, the least of either norm. 0; with a greater one (Fromage has 1e-6) weights of 0 have a ratio too.

    Inf and NaN: a leaf with one in it becomes NaN or 0 as a whole.

    Source: You, Gitman & Ginsburg (2017), "Large batch training of convolutional networks"; You et al. (2020), "Large
    batch optimization for deep learning: training BERT in 76 minutes".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.scale_by_trust_ratio(), jnp.array([3.0, 4.0])
    >>> print(tx.update(jnp.array([0.0, 0.1]), tx.init(p), p)[0])
    [0. 5.]
    """

    equation = r"u \leftarrow u \, c \lVert p\rVert / (\lVert u\rVert + \epsilon)"
    scope = "leaf"
    reads = ("direction", "param")
    needs_params = True
    normalizes = True

    coefficient: Hyper = hyper(default=1.0, low=0)
    eps: Hyper = hyper(default=0.0, low=0)
    floor: Hyper = hyper(default=0.0, low=0)

    def measure(self, groups, total):
        return {
            "direction": norms([[x.direction for x in leaves] for leaves in groups], total),
            "param": norms([[x.param for x in leaves] for leaves in groups], total),
        }

    def settle(self, c, measured):
        u, p = jnp.maximum(measured["direction"], c.floor), jnp.maximum(measured["param"], c.floor)
        inverse, length = (jnp.where((u == 0) | (p == 0), 1, x) for x in in_two(c.coefficient * p, u + c.eps))
        return {"inverse": inverse, "length": length}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.length * (c.inverse * signal.direction)), {}


class cautious(Rule):
    r"""Only what agrees with the gradient: u ← k·u/max(mean k, floor) with k = 1 where u·g > 0, else 0.

    The mean is that of the leaf: what is left grows by as much as is left out. Without the growth it would be half of
    the direction and half of its size with the gradient's signs.

    Args:
        floor: the least mean, so that few elements do not grow without bound; > 0. 1e-3, the authors'. 1: no growth.
        opposed: k where u·g < 0. None, the default: 0. With −1 and a floor of 1 it is Grams, |u|·sign(g).

    Inf and NaN stay in their element; a NaN in u or g counts as one that does not agree.

    Raises:
        TypeError: for complex leaves.

    Source: Liang et al. (2024), "Cautious optimizers: improving training with one line of code".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.chain(gradtx.momentum(0.5), gradtx.cautious())
    >>> updates, state = tx.update(jnp.array([4.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> updates, state = tx.update(jnp.array([4.0, -1.0]), state)
    >>> print(updates)
    [6. 0.]
    """

    scope = "leaf"
    reads = ("direction", "gradient")
    real_only = True

    floor: Hyper = hyper(default=1e-3, low=0)
    opposed: Hyper | None = hyper(default=None)

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        opposed = "" if self.opposed is None else r" + a [u g < 0]"
        return r"u \leftarrow k u / \max(\bar{k}, f), \quad k = [u g > 0]" + opposed

    def measure(self, groups, total):
        def mean(x, way):
            share = total(way, [x.direction], [x.gradient]) / max(size_of(x.direction), 1)
            return share.astype(dtype)

        dtype = promoted(*(real_dtype(x.direction.dtype) for (x,) in groups))
        ways = {"agree": self._agree, **({} if self.opposed is None else {"oppose": self._oppose})}
        return {name: jnp.stack([mean(x, way) for (x,) in groups]) for name, way in ways.items()}

    @staticmethod
    def _agree(u, g):
        return jnp.where(jnp.sign(u) * jnp.sign(g) > 0, jnp.ones_like(u), 0)

    @staticmethod
    def _oppose(u, g):
        return jnp.where(jnp.sign(u) * jnp.sign(g) < 0, jnp.ones_like(u), 0)

    def settle(self, c, measured):
        if self.opposed is None:
            return {"growth": 1 / jnp.maximum(measured["agree"], c.floor)}
        mean = measured["agree"] + c.opposed * measured["oppose"]
        return {"growth": 1 / jnp.maximum(mean, c.floor), "opposed": c.opposed}

    def apply(self, signal, slots, param, c):
        u, g = signal.direction, signal.gradient
        agreement = jnp.sign(u) * jnp.sign(g)
        against = 0 if self.opposed is None else c.opposed * c.growth * u
        other = jnp.where(agreement < 0, against, agreement)  # which is 0, or NaN
        return signal._replace(direction=jnp.where(agreement > 0, c.growth * u, other)), {}


class clip_by_rms(Rule):
    r"""Shrink each leaf whose root mean square exceeds the limit to it: u ← u/max(1, RMS(u)/limit).

    ``clip_by_norm`` with a limit that grows with the size of the leaf: Adafactor's clip of the step.

    Args:
        limit: > 0. 1 as in Adafactor.

    Inf and NaN: a leaf with one in it has no norm, and becomes NaN as a whole.

    Source: Shazeer & Stern (2018), "Adafactor: adaptive learning rates with sublinear memory cost", section 6.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.clip_by_rms(1.0)
    >>> print(tx.update(jnp.array([2.0, -2.0]), tx.init(jnp.zeros(2)))[0])
    [ 1. -1.]
    """

    equation = r"u \leftarrow u / \max(1, \mathrm{RMS}(u) / d)"
    scope = "leaf"

    limit: Hyper = hyper(default=1.0, low=0)

    def measure(self, groups, total):
        return root_mean_squares(groups, total)

    def settle(self, c, measured):
        return shortening(measured, c.limit)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.length * (c.inverse * signal.direction)), {}


class clip_by_gradient_rms(Rule):
    r"""Shrink each leaf whose gradient is larger than its second moment says: u ← u/max(1, RMS(g/√v)/limit).

    A second moment that lags behind, as in a spike of the loss, makes steps too long; here they are as much shorter.
    Between ``debias`` and ``precondition`` that is StableAdamW. Without momentum it is ``clip_by_rms`` after them.

    Args:
        limit: > 0. 1 as in the paper.

    Where v is 0, g/√v counts as 0. Inf and NaN: a leaf with one in g/√v becomes NaN as a whole.

    Source: Wortsman et al. (2023), "Stable and low-loss mixed-precision training for large-scale vision-language
    models".

    >>> import gradtx, jax.numpy as jnp
    >>> averages = gradtx.chain(gradtx.momentum(0.9), gradtx.rms(0.99), gradtx.debias())
    >>> tx = gradtx.chain(averages, gradtx.clip_by_gradient_rms(), gradtx.precondition())
    >>> updates, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
    >>> print(tx.update(jnp.array([9.0]), state)[0].round(3))  # 0.812, divided by 9/6.42
    [0.579]
    """

    equation = r"u \leftarrow u / \max(1, \mathrm{RMS}(g / \sqrt{v}) / d)"
    scope = "leaf"
    reads = ("gradient", "second_moment")
    second_moment = "edits"

    limit: Hyper = hyper(default=1.0, low=0)

    def measure(self, groups, total):
        gradients, squares = [[getattr(x, lane) for (x,) in groups] for lane in self.reads]
        lengths = on_each(jnp.sqrt, total.each(_in_units, gradients, squares))
        return by_root_of_size(lengths, [[g] for g in gradients])

    def settle(self, c, measured):
        return shortening(measured, c.limit)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.length * (c.inverse * signal.direction)), {}


def _in_units(g: jax.Array, v: jax.Array) -> jax.Array:
    """|g|²/v, without a square that overflows."""
    return abs_sq(safe_divide(g, safe_sqrt(v)))


class project_out(Rule):
    r"""Take away what lies along the weights: u ← u − ⟨p, u⟩/‖p‖²·p, p being the parameters of the leaf.

    What is left turns the weights, and hardly makes them longer. For weights whose length does not matter, since a
    normalization follows, say: momentum makes them longer, and so its own steps shorter. At the end of a chain steps
    are orthogonal to the weights, in front of one gradients are. In front of ``fromage`` each step is a turn by atan η.
    Of complex leaves ⟨p, u⟩ is the real part. Where p is 0, u stays as it is. Needs ``params`` in ``update``.

    Inf and NaN: a leaf with one in it, or whose ⟨p, u⟩ overflows, becomes NaN or inf as a whole.

    Source: Heo et al. (2021), "AdamP: slowing down the slowdown for momentum optimizers on scale-invariant weights";
    Prieto et al. (2025), "Grokking at the edge of numerical stability".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.project_out(), jnp.array([3.0, 4.0])
    >>> print(tx.update(jnp.array([5.0, 0.0]), tx.init(p), p)[0].round(4))
    [ 3.2 -2.4]
    """

    equation = r"u \leftarrow u - \frac{\langle p, u\rangle}{\lVert p\rVert^2} p"
    scope = "leaf"
    reads = ("direction", "param")
    needs_params = True

    def measure(self, groups, total):
        columns = [[getattr(x, lane) for (x,) in groups] for lane in ("param", "direction")]
        return {"along": total.each(real_product, *columns), "param": norms([[p] for p in columns[0]], total)}

    def settle(self, c, measured):
        along, length = measured["along"], measured["param"]
        return {"along": safe_divide(along, length), "inverse": safe_divide(jnp.ones_like(length), length)}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction - c.along * (c.inverse * param)), {}


class scale_by_parameter_rms(Rule):
    r"""Steps relative to the weights: u ← u·max(RMS(p), floor), p being the parameters of the leaf.

    Adafactor's: the learning rate is then a share of the size of the weights. Needs ``params`` in ``update``.

    Args:
        floor: the least root mean square, so that weights of 0 move; ≥ 0. 1e-3 as in Adafactor.

    Inf and NaN in p make the leaf inf or NaN as a whole; those in u stay in their element.

    Source: Shazeer & Stern (2018), section 8.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.scale_by_parameter_rms(), jnp.array([2.0, -2.0, 2.0, 2.0])
    >>> print(tx.update(jnp.array([0.5, 1.0, 0.0, -1.0]), tx.init(p), p)[0])
    [ 1.  2.  0. -2.]
    """

    equation = r"u \leftarrow u \max(\mathrm{RMS}(p), f)"
    scope = "leaf"
    reads = ("param",)
    needs_params = True

    floor: Hyper = hyper(default=1e-3, low=0)

    def measure(self, groups, total):
        return root_mean_squares([[x.param for x in leaves] for leaves in groups], total)

    def settle(self, c, measured):
        return {"size": jnp.maximum(measured, c.floor)}

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=c.size * signal.direction), {}


def root_mean_squares(groups, total):
    """The root of the mean of squares of each group of arrays; 0 of no elements."""
    return by_root_of_size(norms(groups, total), groups)


def by_root_of_size(lengths, groups):
    """The norm of each group of arrays as the root of the mean of squares."""
    sizes = [max(1, sum(size_of(x) for x in leaves)) for leaves in groups]
    roots: Any = [math.sqrt(size) for size in sizes]
    return on_each(jnp.divide, lengths, roots if isinstance(lengths, list) else jnp.asarray(roots, lengths.dtype))
