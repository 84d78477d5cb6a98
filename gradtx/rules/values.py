"""Rules that read something else than gradients: the value of the loss, or chance."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._core.contract import Tick
from gradtx._core.mesh import check_whole
from gradtx._core.numerics import abs_sq, mix, norms, real_dtype, real_product, safe_divide, safe_sqrt, widest
from gradtx._core.signal import Signal
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["add_noise", "scale_by_model", "scale_by_polyak"]


class scale_by_polyak(Rule):
    r"""Polyak's step: u ← u·min((f − f*)/(‖u‖² + ε), most), f being the loss, f* what it is at its minimum.

    As if the loss were linear down to its minimum. The norm is that over all leaves. ``update`` and ``step`` need the
    loss that the gradient is of, as ``value=loss``: ``step(tx, params, grads, state, value=loss)``.

    Args:
        minimum: f*, or a lower bound of it. 0, which a model that fits all of its data reaches.
        most: the longest step as a learning rate, > 0. 1.
        eps: ε ≥ 0. 0; where ‖u‖² + ε is 0, so is the step.
        signed: whether a loss below f* goes uphill, as ``optax.polyak_sgd`` by default does. False: it stays.

    Inf and NaN: one of them in a gradient, or in the loss, makes all leaves NaN or 0.

    Raises:
        TypeError: without a ``value``; for one that is no number.

    Source: Loizou et al. (2021), "Stochastic Polyak step-size for SGD: an adaptive learning rate for fast convergence".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.chain(gradtx.scale_by_polyak(most=10.0), gradtx.scale(-1.0)), jnp.array([3.0])
    >>> updates, state = tx.update(2 * p, tx.init(p), value=jnp.sum(p**2))
    >>> print(updates)  # half of the way for a parabola
    [-1.5]
    """

    equation = r"u \leftarrow u \min((f - f^*) / (\lVert u\rVert^2 + \epsilon), c)"
    maps_trees = True
    scales = True
    scope = "tree"
    accumulates = False
    normalizes = True

    minimum: Hyper = hyper(default=0.0)
    most: Hyper = hyper(default=1.0, low=0)
    eps: Hyper = hyper(default=0.0, low=0)
    signed: bool = dataclasses.field(default=False, kw_only=True)

    def apply_tree(self, trees, state):
        loss = _loss(self, trees)
        leaves = jax.tree.leaves(trees.direction)
        wide = widest(*(real_dtype(x.dtype) for x in leaves))
        c, norm = trees.scalars(wide), norms([leaves])[0].astype(wide)
        gap = loss.astype(wide) - c.minimum
        gap = gap if self.signed else jnp.maximum(gap, 0)
        divisor = abs_sq(norm) + c.eps
        step = jnp.where(divisor == 0, 0, jnp.minimum(safe_divide(gap, divisor), c.most))
        return step, state


class scale_by_model(Rule):
    r"""Polyak's step with momentum: u ← u·min(η, (f̄ + ⟨m, p⟩ − γ − f*)₊/⟨m, u⟩), m being the momentum. MoMo.

    ::

        f̄ ← βf̄ + (1−β)f;   γ ← βγ + (1−β)⟨g, p⟩;   both divided by their weight, as ``debias`` does

    The loss is modelled by the average of its tangents at past parameters, f̄ + ⟨m, p⟩ − γ at the new ones. The step is
    the one that brings this model down to f*, or η. Sums are over all leaves. It stands right behind the momentum and
    ``debias``, with u = m, and the same decay. With an ε it stands in the place of ``precondition``, and
    u = m/(√v + ε) is Adam's direction. Needs ``params``, and the loss that the gradient is of as ``value=loss``.

    With a weight decay λ behind it, by which the weights are divided by 1 + ηλ, the model is that of the decayed ones::

        u ← u·min(η, ((1+ηλ)(f̄ − γ − f*) + ⟨m, p⟩)₊/⟨m, u⟩)

    Args:
        decay: β in [0, 1), that of the momentum. 0.9.
        most: η, the longest step as a learning rate, > 0. 1; 0.01 with an ε, in the paper.
        minimum: f*, or a lower bound of it. 0, which a model that fits all of its data reaches.
        eps: ε ≥ 0, outside the root; None, the default, where there is no second moment.
        weight_decay: λ ≥ 0; None, the default: none. The decay itself is another rule's, as in ``momo``.
        adapt: whether to raise the lower bound to what the model says after each step, and to halve it where it was too
            high, never below ``minimum``. False.

    State: ``state``, a dict of ``loss``, f̄, ``along``, γ, and with ``adapt`` ``bound``, f*; ``weight``, the total
    weight in the first two.

    Inf and NaN: one of them in a gradient, a parameter or the loss makes all leaves NaN or 0.

    Raises:
        TypeError: without a ``value``; for one that is no number.

    Source: Schaipp et al. (2023), "MoMo: momentum models for adaptive learning rates", Algorithms 1 and 2.

    >>> import gradtx, jax.numpy as jnp
    >>> average = gradtx.chain(gradtx.momentum(0.9), gradtx.debias())
    >>> tx, p = gradtx.chain(average, gradtx.scale_by_model(0.9, most=10.0), gradtx.scale(-1.0)), jnp.array([3.0])
    >>> updates, state = tx.update(2 * p, tx.init(p), p, value=jnp.sum(p**2))
    >>> print(updates)  # half of the way for a parabola, as Polyak's
    [-1.5]
    """

    equation = (
        r"\bar{f} \leftarrow \beta\bar{f} + (1-\beta) f, \quad "
        r"{\gamma} \leftarrow \beta {\gamma} + (1-\beta) \langle g, p\rangle, \quad "
        r"u \leftarrow u \min(\eta, (\bar{f} + \langle m, p\rangle - \gamma - f^*)_+ / \langle m, u\rangle)"
    )
    maps_trees = True
    scales = True
    scope = "tree"
    accumulates = True
    normalizes = True
    needs_params = True
    nonnegative = ("weight",)

    decay: Hyper = hyper(default=0.9, low=0, below=1)
    most: Hyper = hyper(default=1.0, low=0)
    minimum: Hyper = hyper(default=0.0)
    eps: Hyper | None = hyper(default=None, low=0)
    weight_decay: Hyper | None = hyper(default=None, low=0)
    adapt: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def second_moment(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on eps
        return None if self.eps is None else "uses"

    @property
    def reads(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on eps
        return ("direction", "gradient", "param", *([] if self.eps is None else ["second_moment"]))

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        weight = mix(h.decay, h.decay_complement, scalars.weight, jnp.ones_like(h.decay))
        return Tick(vars(h) | {"weight": weight}, {"weight": weight}, weights)

    def init_tree(self, params: Any) -> dict[str, Any]:
        zero = jnp.zeros((), widest(*(real_dtype(x.dtype) for x in jax.tree.leaves(params))))
        return {name: jnp.zeros_like(zero) for name in ("loss", "along", *["bound"] * self.adapt)}

    def apply_tree(self, trees, state):
        dtype = state["loss"].dtype
        c, loss = trees.scalars(dtype), _loss(self, trees).astype(dtype)

        columns, reduces = [trees.direction, trees.gradient, trees.params], ("sum",) * 3
        if self.eps is None:
            _, products = trees.mapped(_modelled, columns, reduces=reduces)
        else:
            _, products = trees.mapped(_divided_and_modelled, [*columns, trees.second_moment], [c.eps], reduces=reduces)
        along, ahead, divisor = (jnp.sum(x).astype(dtype) for x in products)
        after = {
            "loss": mix(c.decay, c.decay_complement, state["loss"], loss),
            "along": mix(c.decay, c.decay_complement, state["along"], along),
        }
        model, grown = (after["loss"] - after["along"]) / c.weight, self._grown(c)
        minimum = c.minimum
        if self.adapt:
            bound, reached = jnp.where(trees.count == 0, minimum, state["bound"]), grown * model + ahead
            minimum = jnp.where(reached < grown * bound, jnp.maximum(reached / (2 * grown), minimum), bound)
        step = safe_divide(jnp.maximum(grown * (model - minimum) + ahead, 0), divisor)
        step = jnp.minimum(step, c.most)
        if self.adapt:
            after["bound"] = jnp.maximum(model + ahead - step * divisor / 2, c.minimum)
        return step, after

    def apply(self, signal, slots, param, c):
        if self.eps is None:
            return super().apply(signal, slots, param, c)
        return Signal(signal.gradient, c.factor * _divided(signal.direction, signal.second_moment, c.eps)), {}

    def _grown(self, c: Any) -> jax.Array:
        """1 + ηλ."""
        return jnp.ones_like(c.most) if self.weight_decay is None else 1 + c.most * c.weight_decay


def _divided(m: jax.Array, v: jax.Array, eps: jax.Array) -> jax.Array:
    return safe_divide(m, safe_sqrt(v) + eps.astype(v.dtype))


def _modelled(m: jax.Array, g: jax.Array, p: jax.Array) -> tuple[jax.Array, ...]:
    """The products with the parameters, and of the momentum and the direction."""
    return real_product(g, p), real_product(m, p), real_product(m, m)


def _divided_and_modelled(
    m: jax.Array, g: jax.Array, p: jax.Array, v: jax.Array, eps: jax.Array
) -> tuple[jax.Array, ...]:
    """The same with a direction that the second moment divides."""
    return real_product(g, p), real_product(m, p), real_product(m, _divided(m, v, eps))


def _loss(rule: Rule, trees: Any) -> jax.Array:
    """The loss that came with the gradient."""
    who = f"gradtx: rule {rule.title!r}"
    value = trees.extra.get("value")
    if value is None:
        raise TypeError(f"{who} needs the loss: step(tx, params, grads, state, value=loss)")
    loss = value if isinstance(value, jax.Array) else np.asarray(value)
    if loss.shape:
        raise TypeError(f"{who}: value must be one number, found shape {loss.shape}")
    if not any(jnp.issubdtype(loss.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"{who}: value must be a real number, found {value!r}")
    return jnp.asarray(loss)


class add_noise(Rule):
    r"""Gaussian noise that falls: u ← u + n, with the variance η/t^γ in step t.

    In front of a chain it is gradient noise. The noise follows from the seed and the count alone: there is no key in
    the state, and a run that goes on from a checkpoint goes on with the same noise.

    Args:
        variance: η ≥ 0 of the first step; 0.01, 0.3 or 1 in the paper.
        power: γ ≥ 0. 0.55 as in the paper.
        seed: of the noise. 0.

    Inf and NaN stay in their element.

    Raises:
        TypeError: for a seed that is no integer.
        ValueError: for a shard of a leaf, inside of ``jax.shard_map``: all would get the same noise.

    Source: Neelakantan et al. (2015), "Adding gradient noise improves learning for very deep networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.add_noise(0.25, 0.0), jnp.zeros(10_000)
    >>> print(tx.update(g, tx.init(g))[0].std().round(1))
    0.5
    """

    equation = r"u \leftarrow u + n, \quad n \sim N(0, \eta / t^\gamma)"
    maps_trees = True
    pure = True

    variance: Hyper = hyper(default=0.01, low=0)
    power: Hyper = hyper(default=0.55, low=0)
    seed: int = dataclasses.field(default=0, kw_only=True)

    def apply_tree(self, trees, state):
        leaves, treedef = jax.tree.flatten(trees.direction)
        key = jax.random.fold_in(jax.random.key(self.seed), trees.count)
        return treedef.unflatten([self._noisy(trees, u, key, i) for i, u in enumerate(leaves)]), state

    def _noisy(self, trees: Any, u: jax.Array, key: jax.Array, leaf: int) -> jax.Array:
        check_whole(self.title, u)
        c = trees.scalars(u.dtype)
        deviation = jnp.sqrt(c.variance * (trees.count.astype(c.power.dtype) + 1) ** -c.power)
        return u + deviation * jax.random.normal(jax.random.fold_in(key, leaf), u.shape, u.dtype)
