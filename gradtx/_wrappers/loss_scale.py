"""Dynamic loss scaling."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx._chain import Chain
from gradtx._core.control import kept
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import integer, number
from gradtx._core.mesh import check_types, puts_constants, starts
from gradtx._core.numerics import compute_dtype, is_inexact
from gradtx._core.walk import walk
from gradtx._engine import checks, inputs
from gradtx._engine.transformation import check_transformation, run_inside, seen_by
from gradtx._wrappers import front
from gradtx._wrappers.base import Wrapper, checked_state
from gradtx._wrappers.front import with_front, without_front
from gradtx._wrappers.skip_nonfinite import SkipNonfiniteState, limit, skip_nonfinite

_FLOAT32 = jnp.finfo(jnp.float32)


class LossScaleState(NamedTuple):
    """The state of ``loss_scale``.

    Attributes:
        inner: the ``SkipNonfiniteState`` of the steps: how many were skipped, and within it the state of the
            transformation inside.
        scale: what to multiply the next loss by, a float32 scalar (see ``current_loss_scale``).
        good_steps: finite steps since the scale last changed or a step was skipped, int32.
    """

    inner: SkipNonfiniteState
    scale: jax.Array
    good_steps: jax.Array


class loss_scale(Wrapper[LossScaleState]):
    """Dynamic loss scaling for float16: gradients of S·loss come in, divided by S they go to ``tx``, and S adapts.

    Gradients below 6e-8 vanish in float16, those above 65504 are infinite. Scaled by S they fit. You multiply the loss
    by ``current_loss_scale(state)``; the wrapper does the rest::

        finite g:    u, s ← tx(g / S, s);  S ← min(φS, S_max) after every N finite steps in a row
        otherwise:   u ← 0,  s ← s;        S ← max(S/φ, S_min)

    The division is in float32 or wider, and so are the gradients that ``tx`` sees and the updates that come back: a
    float16 update would lose what the scaling saved. ``optax.apply_updates`` rounds the new parameters to their own
    dtype, once.

    A step that is not finite is skipped as by ``skip_nonfinite``: inf and NaN never reach ``tx``. That is normal here
    now and then, when S grew too far.

    Args:
        tx: a gradtx chain or rule, or any optax transformation. Clipping and weight decay belong inside, where the
            gradients are unscaled. It gets the extra arguments of ``update``.
        initial: S at the start, 2¹⁵: large on purpose, since it falls fast and rises slowly. Powers of two (times a
            power-of-two ``factor``) make scaling exact.
        growth_interval: N ≥ 1, finite steps in a row before S grows; 2000 is usual.
        factor: φ > 1 that S grows and falls by; 2.
        minimum: S never falls below it; 1, where scaling ends. It must be above 0.
        maximum: S never grows above it; 2²⁴, so that S times a float32 loss stays finite.
        max_consecutive: as in ``skip_nonfinite``: after so many skipped steps in a row updates become NaN. None: never.
            Allow more than the log₂(initial/minimum) steps that S may need to come down.

    State: ``LossScaleState``. Gradients may be accumulated inside (``loss_scale(accumulate(tx, k))`` drops a bad
    micro-batch) or outside (``accumulate(loss_scale(tx), k)`` drops its whole batch, and S stays the same within one).
    A ``chain`` around it rounds the updates to the dtype of the gradients again: let the chain be inside.
    Put no ``skip_nonfinite`` around it: S would not see what overflowed, and never fall.

    Raises:
        TypeError: if ``tx`` is no transformation, or another argument no number; in ``update``, for a state that
            ``init`` did not make.
        ValueError: unless 0 < minimum ≤ initial ≤ maximum ≤ 2¹²⁶, factor > 1 and growth_interval ≥ 1.

    Source: Micikevicius et al. (2018), "Mixed precision training", section 3.2.

    >>> import gradtx, jax, jax.numpy as jnp
    >>> tx, params = gradtx.loss_scale(gradtx.sgd(0.5)), jnp.array(1.0, jnp.float16)
    >>> state = tx.init(params)
    >>> def loss(w, state):  # its gradient, 1e-9, is zero in float16
    ...     return gradtx.current_loss_scale(state) * (w.astype(jnp.float32) * 1e-9)
    >>> grads = jax.grad(loss)(params, state)
    >>> updates, state = tx.update(grads, state)
    >>> print(f"{updates:.2g}", updates.dtype, state.scale)
    -5e-10 float32 32768.0
    """

    conditions = skip_nonfinite.conditions

    tx: optax.GradientTransformation
    initial: float = 2.0**15
    growth_interval: int = 2000
    factor: float = 2.0
    minimum: float = 1.0
    maximum: float = 2.0**24
    max_consecutive: int | None = None

    def __post_init__(self):
        check_transformation(self.label, "tx", self.tx)
        for name in ("initial", "factor", "minimum", "maximum"):
            object.__setattr__(self, name, number(self.label, name, getattr(self, name)))
        interval = integer(self.label, "growth_interval", self.growth_interval, low=1)
        object.__setattr__(self, "growth_interval", interval)
        object.__setattr__(self, "max_consecutive", limit(self.label, self.max_consecutive))
        if self.factor <= 1:
            raise ValueError(f"loss_scale: factor must be greater than 1, found {self.factor:g}")
        if not _FLOAT32.tiny <= self.minimum <= self.initial <= self.maximum <= 1 / _FLOAT32.tiny:
            raise ValueError(
                "loss_scale: needs 0 < minimum ≤ initial ≤ maximum, normal numbers of float32 up to 2¹²⁶, "
                f"found minimum={self.minimum:g}, initial={self.initial:g}, maximum={self.maximum:g}"
            )

    def arrays_read(self) -> int:
        """As of ``skip_nonfinite``; those that are measured are divided before."""
        return 1

    @property
    def _guarded(self) -> skip_nonfinite:
        return skip_nonfinite(self.tx, self.max_consecutive)

    def _members(self, state: LossScaleState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner.inner)}

    @starts
    def init(self, params: Any) -> LossScaleState:
        """The state before the first step: the initial scale, nothing skipped."""
        inner = self._guarded.init(seen_by(self.tx, params))
        return LossScaleState(inner, jnp.array(self.initial, jnp.float32), zero())

    def run(
        self, updates: Any, state: LossScaleState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, LossScaleState]:
        """One step from gradients of the scaled loss; updates are float32 or wider."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: LossScaleState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, LossScaleState]:
        """``run`` where a flag is true."""
        state = checked_state(self.label, state, LossScaleState, "good_steps")
        check_types(self.label)
        checks.check_kind("scale", state.scale, "floating", shape=(), who=self.label)
        guarded, held, dividing = self._guarded, state.inner, self._dividing
        leaves = jax.tree.leaves((updates, params))
        if dividing is not None and all(map(_is_wide, leaves)):
            guarded = skip_nonfinite(dividing, self.max_consecutive)
            held = held._replace(inner=with_front(dividing, held.inner, {"divisor": state.scale}, {}))
        else:
            updates = jax.tree.map(lambda g: _unscaled(g, state.scale), updates)
        after, inner = run_inside(guarded, updates, held, seen_by(self.tx, params), extra, apply_updates, when=when)
        after = jax.tree.map(_as_stored, after, params) if apply_updates else after
        if dividing is not None and held is not state.inner:
            inner = inner._replace(inner=without_front(dividing, inner.inner, state.inner.inner)[0])
        own = kept(when, self._adapted(state, inner.finite), (state.scale, state.good_steps))
        return after, LossScaleState(inner, *own)

    @functools.cached_property
    def _dividing(self) -> Chain | None:
        """The chain with the division in its own pass; g is then finite where g/S is, since S ≥ 1."""
        return front.dividing(self.tx) if self.minimum >= 1 else None

    def _adapted(self, state: LossScaleState, finite: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next scale, and the good steps since it changed."""
        good_steps = jnp.where(finite, incremented(state.good_steps), 0)
        grows = good_steps >= self.growth_interval
        grown = jnp.where(grows, jnp.minimum(state.scale * self.factor, self.maximum), state.scale)
        scale = jnp.where(finite, grown, jnp.maximum(state.scale / self.factor, self.minimum))
        return scale, jnp.where(grows, 0, good_steps)


def current_loss_scale(state: Any) -> jax.Array:
    """The factor to multiply the loss by: the scale in the state of a ``loss_scale``, wherever it stands.

    Args:
        state: a ``LossScaleState``, or any state with one in it: of a chain, of another wrapper.

    Returns:
        A float32 scalar. Times a float16 loss it makes a float32 one, which does not overflow.

    Raises:
        ValueError: if the state holds no loss scale, or several.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.accumulate(gradtx.loss_scale(gradtx.adam(1e-3), initial=1024), 4)
    >>> print(gradtx.current_loss_scale(tx.init(jnp.zeros(3))))
    1024.0
    """
    found = [jax.tree.leaves(part.scale)[0] for _, part in walk(state, LossScaleState)]
    if len(found) != 1:
        raise ValueError(
            f"current_loss_scale: found {len(found) or 'no'} LossScaleState in this {type(state).__name__}; it must "
            "be the state of one loss_scale, or have exactly one in it."
        )
    return found[0]


def _unscaled(gradient: Any, scale: jax.Array) -> Any:
    """g/S in float32 or wider. Integers are nobody's gradient and stay as they are."""
    if not is_inexact(jnp.result_type(gradient)):
        return gradient
    wide = jnp.asarray(gradient, compute_dtype(gradient))
    return wide / scale.astype(wide.dtype)


def _is_wide(x: Any) -> bool:
    """True if it is an array of numbers of float32 or wider."""
    return inputs.is_number(x) and compute_dtype(x) == jnp.result_type(x)


def _as_stored(after: Any, param: Any) -> Any:
    """A parameter after the step in the dtype that it is stored in."""
    return after.astype(param.dtype) if inputs.is_number(param) and hasattr(param, "dtype") else after
