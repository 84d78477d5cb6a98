"""Step sizes by the sign of the gradient alone."""

from __future__ import annotations

import jax.numpy as jnp

from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["resilient_step"]


class resilient_step(Rule):
    r"""Rprop: a step size for each element, longer while the gradient keeps its sign, shorter where it turns.

    With the sign s of g·g₋: d ← d·η₊ for s > 0, d·η₋ for s < 0, within [low, high]; where s < 0 the gradient counts
    as 0, in the next step too; u ← d·sign(g). For whole batches: the sign of a mini-batch's gradient is noise.

    Args:
        initial: d at the start, > 0.
        shrink: η₋ in [0, 1). 0.5 as in the paper.
        grow: η₊ ≥ 1. 1.2 as in the paper.
        low: the smallest d. 1e-6 as in the paper.
        high: the largest d. 50 as in the paper.

    The direction is a step already: a learning rate of 1 follows it.

    State: ``step``, d; ``previous``, g₋; both like the parameters.

    A NaN stays in its element, and in its slot until the next step.

    Raises:
        TypeError: for complex leaves.

    Source: Riedmiller & Braun (1993), "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm"; without its backtracking, as in torch.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, steps = gradtx.resilient_step(0.1), []
    >>> state = tx.init(jnp.zeros(1))
    >>> for g in (3.0, 1.0, 5.0, -1.0, 1.0):
    ...     updates, state = tx.update(jnp.array([g]), state)
    ...     steps.append(round(float(updates[0]), 4))
    >>> print(steps)
    [0.1, 0.12, 0.144, 0.0, 0.072]
    """

    equation = (
        r"d \leftarrow \mathrm{clip}(\eta_{\mathrm{sign}(g g_{t-1})} d), \quad u \leftarrow d \, \mathrm{sign}(g)"
    )
    accumulates = True
    normalizes = True
    nonnegative = ("step",)
    real_only = True

    initial: Hyper = hyper(default=0.01, low=0)
    shrink: Hyper = hyper(default=0.5, low=0, below=1)
    grow: Hyper = hyper(default=1.2, low=0)
    low: Hyper = hyper(default=1e-6, low=0)
    high: Hyper = hyper(default=50.0, low=0)

    def slots(self, param):
        return {"step": jnp.zeros_like(param), "previous": jnp.zeros_like(param)}

    def apply(self, signal, slots, param, c):
        g = signal.gradient
        turned = jnp.sign(g) * jnp.sign(slots.previous)
        step = jnp.where(slots.step == 0, c.initial, slots.step)  # 0 only before the first step
        change = jnp.where(turned > 0, c.grow, jnp.where(turned < 0, c.shrink, 1))
        step = jnp.clip(step * change, c.low, c.high)
        g = jnp.where(turned < 0, 0, g)
        return signal._replace(direction=step * jnp.sign(g)), {"step": step, "previous": g}
