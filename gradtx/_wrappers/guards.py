"""Guards: whether a step of another transformation happens at all, decided by the gradients or by counting.

Each keeps the other transformation from running where it must not, with ``lax.cond``, so that the work is saved as
well (under ``vmap``, where a condition is a selection, both sides are computed and the right one is taken). The updates
have the dtypes that the other transformation gives, whether it runs or not. In a chain a guard is one rule among
others, which run in every step: what is to be guarded belongs inside.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._chain import seal, started
from gradtx._core.control import Once, either, types_of
from gradtx._core.mesh import all_of, puts_constants, sharded_as, starts
from gradtx._core.numerics import added, compute_dtype, is_inexact, real_dtype, safe_divide, widened
from gradtx._core.walk import walk
from gradtx._engine import checks
from gradtx._wrappers.base import Wrapper

T = TypeVar("T")

_Combine = Literal["mean", "weighted mean", "sum"]

_FLOAT32 = jnp.finfo(jnp.float32)
_MOST = jnp.iinfo(jnp.int32).max


class SkipNonfiniteState(NamedTuple):
    """The state of ``skip_nonfinite``.

    Attributes:
        inner: the state of the transformation inside.
        skipped: steps skipped so far, int32, saturating.
        consecutive: steps skipped since the last good one, int32, saturating.
        finite: whether the last step's gradients were all finite, a bool; True before the first step.
    """

    inner: Any
    skipped: jax.Array
    consecutive: jax.Array
    finite: jax.Array


class skip_nonfinite(Wrapper):
    """Skips a step whole if any gradient is inf or NaN: no update, and nothing inside changes, its count included.

    With all gradients finite, g finite: u, s ← tx(g, s). Otherwise u ← 0, s ← s; ``tx`` does not run, and nothing of
    the bad gradients is kept. One inf or NaN in one leaf skips the step for every leaf.

    Args:
        tx: a gradtx chain or rule, or any optax transformation. It gets the extra arguments of ``update``.
        max_consecutive: n ≥ 0, how many steps in a row may be skipped. In every further one the updates are NaN in all
            elements, so that the loss becomes NaN and a run that cannot recover is seen to fail, instead of standing
            still for ever; ``tx`` and its state are not touched even then, and after good parameters are put back, the
            next good step works as ever. None, the default: no limit; look at ``state.consecutive`` now and then.

    State: ``SkipNonfiniteState``. Leaves that are not floating or complex count as finite, and are zero in a skipped
    step; None is no leaf. Updates have the dtypes that ``tx`` gives.

    What finite gradients make of the parameters is not looked at: an update that is infinite because ``tx`` made it so
    is passed on.

    Arrays sharded over a mesh are one array: an inf or NaN in one shard skips the step on every device; inside
    ``shard_map`` too, where types say what is sharded. With ``check_vma=False`` they do not: there the gradients must
    be the same on all devices.

    Raises:
        TypeError: if ``tx`` is no transformation, or ``max_consecutive`` no integer; in ``update``, for a state that
            ``init`` did not make.
        ValueError: for a negative ``max_consecutive``, or one that int32 does not hold.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.skip_nonfinite(gradtx.sgd(0.1, momentum=0.9))
    >>> state = tx.init(jnp.zeros(2))
    >>> updates, state = tx.update(jnp.array([1.0, jnp.inf]), state)
    >>> print(updates, state.skipped, state.inner.count)
    [0. 0.] 1 0
    >>> updates, state = tx.update(jnp.array([1.0, 2.0]), state)
    >>> print(updates, state.skipped, state.inner.count)
    [-0.1 -0.2] 1 1
    """

    tx: optax.GradientTransformation
    max_consecutive: int | None = None

    def __post_init__(self):
        _check_transformation(self.label, self.tx)
        object.__setattr__(self, "max_consecutive", _limit(self.label, self.max_consecutive))

    def _members(self, state: SkipNonfiniteState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner)}

    @starts
    def init(self, params: Any) -> SkipNonfiniteState:
        """The state before the first step: nothing skipped."""
        return SkipNonfiniteState(_started(self.tx, params), _zero(), _zero(), jnp.array(True))

    @puts_constants
    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, SkipNonfiniteState]:
        """What ``tx`` makes of finite gradients; zeros, or NaN after too many in a row, instead of others."""
        state = _checked_state(self.label, state, SkipNonfiniteState, "skipped", "consecutive")
        finite = _all_finite(updates)
        consecutive = jnp.where(finite, 0, _next(state.consecutive))

        run = Once(lambda gradients: _run(self.tx, gradients, state.inner, params, extra_args), updates)

        def skip() -> tuple[Any, Any]:
            too_many = False if self.max_consecutive is None else consecutive > self.max_consecutive
            return _filled(run.types[0], jnp.where(too_many, jnp.nan, 0.0)), state.inner

        updates, inner = either(finite, run, skip)
        skipped = jnp.where(finite, state.skipped, _next(state.skipped))
        return updates, SkipNonfiniteState(inner, skipped, consecutive, finite)


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


class loss_scale(Wrapper):
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
        ValueError: unless 0 < minimum ≤ initial ≤ maximum < ∞, factor > 1 and growth_interval ≥ 1.

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

    tx: optax.GradientTransformation
    initial: float = 2.0**15
    growth_interval: int = 2000
    factor: float = 2.0
    minimum: float = 1.0
    maximum: float = 2.0**24
    max_consecutive: int | None = None

    def __post_init__(self):
        _check_transformation(self.label, self.tx)
        for name in ("initial", "factor", "minimum", "maximum"):
            object.__setattr__(self, name, _number(self.label, name, getattr(self, name)))
        interval = _integer(self.label, "growth_interval", self.growth_interval, low=1)
        object.__setattr__(self, "growth_interval", interval)
        object.__setattr__(self, "max_consecutive", _limit(self.label, self.max_consecutive))
        if self.factor <= 1:
            raise ValueError(f"loss_scale: factor must be greater than 1, found {self.factor:g}")
        if not _FLOAT32.tiny <= self.minimum <= self.initial <= self.maximum <= _FLOAT32.max:
            raise ValueError(
                "loss_scale: needs 0 < minimum ≤ initial ≤ maximum, all normal numbers of float32, found "
                f"minimum={self.minimum:g}, initial={self.initial:g}, maximum={self.maximum:g}"
            )

    @property
    def _guarded(self) -> skip_nonfinite:
        return skip_nonfinite(self.tx, self.max_consecutive)

    def _members(self, state: LossScaleState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner.inner)}

    @starts
    def init(self, params: Any) -> LossScaleState:
        """The state before the first step: the initial scale, nothing skipped."""
        inner = self._guarded.init(jax.tree.map(widened, params))
        return LossScaleState(inner, jnp.array(self.initial, jnp.float32), _zero())

    @puts_constants
    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, LossScaleState]:
        """One step from gradients of the scaled loss; the updates are float32 or wider."""
        state = _checked_state(self.label, state, LossScaleState, "good_steps")
        checks.check_kind("scale", state.scale, "floating", shape=(), who=self.label)
        unscaled = jax.tree.map(lambda g: _unscaled(g, state.scale), updates)
        updates, inner = self._guarded.update(unscaled, state.inner, jax.tree.map(widened, params), **extra_args)
        return updates, LossScaleState(inner, *self._adapted(state, inner.finite))

    def _adapted(self, state: LossScaleState, finite: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next scale, and the good steps since it changed."""
        good_steps = jnp.where(finite, _next(state.good_steps), 0)
        grows = good_steps >= self.growth_interval
        grown = jnp.where(grows, jnp.minimum(state.scale * self.factor, self.maximum), state.scale)
        scale = jnp.where(finite, grown, jnp.maximum(state.scale / self.factor, self.minimum))
        return scale, jnp.where(grows, 0, good_steps)


def current_loss_scale(state: Any) -> jax.Array:
    """What to multiply the loss by: the scale in the state of a ``loss_scale``, wherever it stands.

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


class AccumulateState(NamedTuple):
    """The state of ``accumulate``.

    Attributes:
        inner: the state of the transformation inside.
        sums: a tree like the parameters, the sum of the micro-batches held; float32 at least.
        held: how many micro-batches that is, int32; 0 right after an emission.
        micro_steps: micro-batches seen so far, int32, saturating.
        emitted: emissions so far, which are the steps of the transformation inside; int32, saturating.
        weight: the sum of the weights of the micro-batches held, float32 at least; None where they have none.
    """

    inner: Any
    sums: Any
    held: jax.Array
    micro_steps: jax.Array
    emitted: jax.Array
    weight: jax.Array | None = None


class accumulate(Wrapper):
    """Gradient accumulation: every k-th step is a step of ``tx`` with the mean of the last k gradients.

    Per micro-batch, with the sum a and their number n, both 0 at the start::

        a ← a + g,  n ← n + 1
        n < k:   u ← 0
        n = k:   u, s ← tx(a/n, s);  a, n ← 0

    Between emissions ``tx`` does not run: its state and its count stand still. Sums and mean are in float32 or wider,
    whatever the gradients are, and ``tx`` sees the mean so; updates have the dtypes that ``tx`` gives for gradients
    like those that came in. Every micro-batch weighs the same: those of equal size make the step of the whole batch,
    up to rounding. Where they differ, as in their numbers of tokens, give ``update`` or ``step`` each one's weight w::

        a ← a + wg,  W ← W + w,  n ← n + 1
        n = k:   u, s ← tx(a/W, s);  a, W, n ← 0

    With gradients of means over w tokens that is the gradient of the mean over all tokens. A micro-batch of weight 0 is
    left out, whatever its gradient (the mean of nothing is NaN); where all are, the mean is 0.

    The end of an epoch leaves part of a batch. ``update(..., emit=True)`` emits with this micro-batch, whatever n is::

        tx.update(grads, state, params, emit=i + 1 == len(batches))

    Args:
        tx: a gradtx chain or rule, or any optax transformation. In an emission it gets the parameters and the extra
            arguments of that call.
        every: k ≥ 1, or a schedule: a function of the number of emissions so far, as an int32 array, that returns the k
            of the next one (below 1 counts as 1). With ``every=1``, ``tx`` gets the gradients as they are.
        combine: "mean"; "weighted mean", with the extra argument ``weight`` in each ``update``, a scalar w ≥ 0; or
            "sum", for losses that are sums over a batch: ``tx`` gets a.

    Extra arguments: ``weight``, see ``combine``; ``tx`` gets W in its place. ``emit``, a bool, traced or not, False by
    default; ``tx`` gets it, too, so that what accumulates inside emits with it.

    State: ``AccumulateState``, one float32 (or wider) array for each parameter more than that of ``tx``.

    Inf and NaN: a bad micro-batch makes the mean of its own batch inf or NaN, and the next batch starts clean.
    ``skip_nonfinite`` inside or outside says what to drop: ``accumulate(skip_nonfinite(tx), k)`` the whole batch,
    ``skip_nonfinite(accumulate(tx, k))`` only the micro-batch, and its ``emit``, for which one more is then taken.

    Raises:
        TypeError: if ``tx`` is no transformation, or ``every`` neither an integer nor a function; for leaves that are
            not floating or complex; in ``update``, for a state that ``init`` did not make, for a weight that is missing
            or that nothing asked for, and for a ``weight`` that is no number or an ``emit`` that is no bool.
        ValueError: for ``every`` below 1, for an unknown ``combine``, and for gradients of another structure or other
            shapes than the parameters.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.accumulate(gradtx.sgd(0.1), every=2)
    >>> state = tx.init(jnp.zeros(2))
    >>> for gradient in [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]:
    ...     updates, state = tx.update(jnp.array(gradient), state)
    ...     print(updates, state.micro_steps, state.emitted)
    [0. 0.] 1 0
    [-0.2 -0.3] 2 1
    [0. 0.] 3 1

    Means over one token and over three, the second at the end of an epoch:

    >>> tx = gradtx.accumulate(gradtx.sgd(1.0), every=8, combine="weighted mean")
    >>> state = tx.init(jnp.zeros(1))
    >>> _, state = tx.update(jnp.array([4.0]), state, weight=1)
    >>> updates, state = tx.update(jnp.array([8.0]), state, weight=3, emit=True)
    >>> print(updates)
    [-7.]
    """

    tx: optax.GradientTransformation
    every: int | Callable[[jax.Array], Any]
    combine: _Combine = "mean"

    def __post_init__(self):
        _check_transformation(self.label, self.tx)
        if self.combine not in (known := get_args(_Combine)):
            raise ValueError(f"accumulate: combine must be one of {known}, found {self.combine!r}")
        if not callable(self.every):
            number = _integer(self.label, "every", self.every, low=1, otherwise=", or a schedule")
            object.__setattr__(self, "every", number)

    def _members(self, state: AccumulateState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner)}

    @starts
    def init(self, params: Any) -> AccumulateState:
        """The state before the first micro-batch."""
        sums = jax.tree.map(_sum_for, params)
        weight = _weighed(0.0, sums) if self._weighs else None
        return AccumulateState(_started(self.tx, self._seen(params)), sums, _zero(), _zero(), _zero(), weight)

    @property
    def _weighs(self) -> bool:
        return self.combine == "weighted mean"

    @property
    def _passes(self) -> bool:
        """Whether ``tx`` gets the gradients as they are."""
        return self.every == 1 and self.combine == "mean"

    def _seen(self, params: Any) -> Any:
        """The parameters as ``tx`` gets them: lifted as the gradients are."""
        return params if self._passes else jax.tree.map(widened, params)

    @puts_constants
    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, AccumulateState]:
        """What ``tx`` makes of the mean if this micro-batch completes its batch, else zeros."""
        state = _checked_state(self.label, state, AccumulateState, "held", "micro_steps", "emitted")
        self._check_weight(state, extra_args)
        summands, total = updates, None
        if state.weight is not None:
            weight = _weighed(extra_args["weight"], state.sums)
            total = extra_args["weight"] = state.weight + weight
            summands = jax.tree.map(lambda g: _times(weight, g), updates)
        sums = _added(state.sums, summands, params)
        number = state.held + 1
        complete = number >= (self.every(state.emitted) if callable(self.every) else self.every)
        complete = complete | _flag(extra_args.get("emit", False))

        def combined(sums: Any) -> Any:
            if self.combine == "sum":
                return sums
            return jax.tree.map(lambda a: safe_divide(a, (number if total is None else total).astype(a.dtype)), sums)

        def inside(updates: Any, sums: Any) -> tuple[Any, Any]:
            gradients = updates if self._passes else _with_others(combined(sums), updates, params)
            return _run(self.tx, gradients, state.inner, self._seen(params), extra_args)

        run = Once(inside, updates, sums)
        same = self._passes or _dtypes(sums) == _dtypes(updates)
        like = run.types[0] if same else self._types_alone(updates, params, extra_args)

        def emit() -> tuple[Any, Any, Any]:
            after, inner = run()
            return jax.tree.map(_cast, after, like), inner, jax.tree.map(jnp.zeros_like, sums)

        def wait() -> tuple[Any, Any, Any]:
            return _filled(like, 0.0), state.inner, sums

        updates, inner, sums = either(complete, emit, wait)
        held = jnp.where(complete, 0, number)
        emitted = jnp.where(complete, _next(state.emitted), state.emitted)
        total = None if total is None else jnp.where(complete, 0, total)
        return updates, AccumulateState(inner, sums, held, _next(state.micro_steps), emitted, total)

    def _types_alone(self, updates: Any, params: Any, extra: dict[str, Any]) -> Any:
        """The types of the updates that ``tx`` alone would give for these gradients."""

        def first(updates: Any, params: Any) -> Any:
            state = _started(self.tx, updates if params is None else params)
            return _run(self.tx, updates, state, params, extra)[0]

        return types_of(first, updates, params)

    def _check_weight(self, state: AccumulateState, extra_args: dict[str, Any]) -> None:
        if (state.weight is None) == self._weighs:
            raise ValueError(f"accumulate: combine={self.combine!r}, and the state is one of another combine")
        if self._weighs and "weight" not in extra_args:
            raise TypeError("accumulate: combine='weighted mean' needs the weight of each: update(..., weight=w)")
        if "weight" in extra_args and not self._weighs:
            raise TypeError(f"accumulate: combine={self.combine!r} has no use for weight: combine='weighted mean' has")


def _weighed(weight: Any, sums: Any) -> jax.Array:
    """A weight in the widest dtype of the sums, in float32 at least."""
    if isinstance(weight, int | float) and not weight >= 0:
        raise ValueError(f"accumulate: weight must be 0 or more, found {weight!r}")
    weight = jnp.asarray(weight)
    if weight.shape or not any(jnp.issubdtype(weight.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(f"accumulate: weight must be one real number, found {weight.dtype}{list(weight.shape)}")
    return weight.astype(real_dtype(compute_dtype(*jax.tree.leaves(sums))))


def _times(weight: jax.Array, gradient: Any) -> jax.Array:
    """wg, and 0 for w = 0."""
    if not checks.is_number(gradient):
        return gradient
    gradient = jnp.asarray(gradient, compute_dtype(gradient))
    return jnp.where(weight == 0, 0, weight.astype(gradient.dtype) * gradient)


def _flag(emit: Any) -> jax.Array:
    array = isinstance(emit, jax.Array | np.ndarray | np.bool_) and emit.dtype == np.dtype(bool) and emit.shape == ()
    if not isinstance(emit, bool) and not array:
        raise TypeError(f"accumulate: emit must be one bool, found {emit!r}")
    return jnp.asarray(emit)


def _started(tx: optax.GradientTransformation, params: Any) -> Any:
    """The state of the transformation inside; numbers as arrays with a dtype of their own, which they will keep."""
    return jax.tree.map(_strong, started(tx, params))


def _run(tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> Any:
    """A step of the transformation inside, its state held to the types it started with."""
    updates, state = seal(tx).run(updates, state, params, extra)
    return jax.tree.map(_strong, updates), state


def _dtypes(tree: Any) -> list[jnp.dtype]:
    return [jnp.result_type(x) for x in jax.tree.leaves(tree)]


def _strong(x: Any) -> Any:
    if checks.has_no_gradient(x):
        return x
    return jnp.asarray(x, jnp.asarray(x).dtype)  # asking for the dtype takes a weak type away


def _all_finite(tree: Any) -> jax.Array:
    """Whether no floating or complex leaf has an inf or a NaN, in any shard."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_inexact(jnp.result_type(leaf))]
    return all_of([jnp.isfinite(leaf).all() for leaf in leaves])


def _filled(like: Any, value: Any) -> Any:
    """Arrays of these shapes and dtypes, full of the value; of 0 where a dtype is neither floating nor complex."""

    def one(x: Any) -> Any:
        if checks.has_no_gradient(x):
            return np.zeros(x.shape, x.dtype)
        return jnp.full(x.shape, value if is_inexact(x.dtype) else 0, x.dtype)

    return jax.tree.map(one, like)


def _unscaled(gradient: Any, scale: jax.Array) -> Any:
    """g/S in float32 or wider. Integers are nobody's gradient and stay as they are."""
    if not is_inexact(jnp.result_type(gradient)):
        return gradient
    wide = jnp.asarray(gradient, compute_dtype(gradient))
    return wide / scale.astype(wide.dtype)


def _sum_for(param: Any) -> Any:
    """Where to sum a parameter's gradients; None for what is no number, which has none."""
    return sharded_as(jnp.zeros_like(param, compute_dtype(param)), param) if checks.is_number(param) else None


def _added(sums: Any, updates: Any, params: Any) -> Any:
    """a + g in the wider of the two, kept as a is; a where there is no gradient to add."""
    given, treedef, counted = _gradients(updates, params)
    held = checks.leaves_like(treedef, sums)
    leaves, structure = checks.named_leaves(_where(counted, given, treedef), "updates")
    others = sums if held is None else _where(counted, held, treedef)
    others = checks.flatten_like(structure, leaves, others, "accumulated gradients", "updates")
    for (path, _), a in zip(leaves, others, strict=True):
        checks.check_kind(f"sums, leaf {path!r},", a, "floating or complex", who="accumulate")
    checks.check_complex(leaves, others, "parameter")
    sums_after = iter([added(a, jnp.asarray(g)) for a, (_, g) in zip(others, leaves, strict=True)])
    return treedef.unflatten([next(sums_after) if c else a for c, a in zip(counted, held or others, strict=True)])


def _with_others(combined: Any, updates: Any, params: Any) -> Any:
    """The gradients combined; what came in last where there is none to add."""
    given, treedef, counted = _gradients(updates, params)
    held = treedef.flatten_up_to(combined)
    return treedef.unflatten([a if counts else g for counts, a, g in zip(counted, held, given, strict=True)])


def _gradients(updates: Any, params: Any) -> tuple[list[Any], Any, list[bool]]:
    """The leaves, None among them, the structure, and which are gradients of numbers; of frozen leaves some are not."""
    given, treedef = jax.tree.flatten(updates, is_leaf=lambda g: g is None)
    others = checks.leaves_like(treedef, params) or given
    return given, treedef, [checks.is_number(g) and checks.is_number(p) for g, p in zip(given, others, strict=True)]


def _where(counted: list[bool], leaves: list[Any], treedef: Any) -> Any:
    return treedef.unflatten([x if counts else None for counts, x in zip(counted, leaves, strict=True)])


def _cast(update: Any, like: Any) -> Any:
    return update if checks.has_no_gradient(update) else update.astype(like.dtype)


def _zero() -> jax.Array:
    return jnp.zeros((), jnp.int32)


def _next(count: jax.Array) -> jax.Array:
    return jnp.asarray(optax.safe_increment(count))


def _check_transformation(name: str, tx: Any) -> None:
    if not isinstance(tx, optax.GradientTransformation):
        hint = " (call it to make one)" if isinstance(tx, type) or callable(tx) else ""
        raise TypeError(f"{name}: tx must be a gradtx chain or rule, or an optax transformation, found {tx!r}{hint}")


def _checked_state(name: str, state: Any, expected: type[T], *counts: str) -> T:
    if not isinstance(state, expected):
        raise TypeError(
            f"{name}: update needs the {expected.__name__} that init returned, found {type(state).__name__}. "
            "The arguments are update(updates, state, params)."
        )
    checks.check_counts(name, **{count: getattr(state, count) for count in counts})
    return state


def _integer(name: str, field: str, value: Any, low: int, otherwise: str = "") -> int:
    wanted = f"an integer from {low} to {_MOST}{otherwise}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: {field} must be {wanted}, found {value!r}")
    if not low <= number <= _MOST:
        raise ValueError(f"{name}: {field} must be {wanted}, found {number}")
    return number


def _limit(name: str, max_consecutive: Any) -> int | None:
    return None if max_consecutive is None else _integer(name, "max_consecutive", max_consecutive, 0, " or None")


def _number(name: str, field: str, value: Any) -> float:
    try:
        number = None if isinstance(value, bool | str) else float(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: {field} must be a number, found {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name}: {field} must be finite, found {number:g}")
    return number
