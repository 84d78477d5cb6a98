"""Gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core.control import Once, either, types_of
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import integer
from gradtx._core.mesh import puts_constants, sharded_as, starts
from gradtx._core.numerics import added, compute_dtype, real_dtype, safe_divide, widened
from gradtx._engine import checks, inputs
from gradtx._engine.transformation import check_transformation
from gradtx._wrappers.base import Wrapper, checked_state, filled, run_inside, strong_started

_Combine = Literal["mean", "weighted mean", "sum"]


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
        check_transformation(self.label, "tx", self.tx)
        if self.combine not in (known := get_args(_Combine)):
            raise ValueError(f"accumulate: combine must be one of {known}, found {self.combine!r}")
        if not callable(self.every):
            number = integer(self.label, "every", self.every, low=1, otherwise=", or a schedule")
            object.__setattr__(self, "every", number)

    def _members(self, state: AccumulateState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner)}

    @starts
    def init(self, params: Any) -> AccumulateState:
        """The state before the first micro-batch."""
        sums = jax.tree.map(_sum_for, params)
        weight = _weighed(0.0, sums) if self._weighs else None
        return AccumulateState(strong_started(self.tx, self._seen(params)), sums, zero(), zero(), zero(), weight)

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
        state = checked_state(self.label, state, AccumulateState, "held", "micro_steps", "emitted")
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
            return run_inside(self.tx, gradients, state.inner, self._seen(params), extra_args)

        run = Once(inside, updates, sums)
        same = self._passes or _dtypes(sums) == _dtypes(updates)
        like = run.types[0] if same else self._types_alone(updates, params, extra_args)

        def emit() -> tuple[Any, Any, Any]:
            after, inner = run()
            return jax.tree.map(_cast, after, like), inner, jax.tree.map(jnp.zeros_like, sums)

        def wait() -> tuple[Any, Any, Any]:
            return filled(like, 0.0), state.inner, sums

        updates, inner, sums = either(complete, emit, wait)
        held = jnp.where(complete, 0, number)
        emitted = jnp.where(complete, incremented(state.emitted), state.emitted)
        total = None if total is None else jnp.where(complete, 0, total)
        return updates, AccumulateState(inner, sums, held, incremented(state.micro_steps), emitted, total)

    def _types_alone(self, updates: Any, params: Any, extra: dict[str, Any]) -> Any:
        """The types of the updates that ``tx`` alone would give for these gradients."""

        def first(updates: Any, params: Any) -> Any:
            state = strong_started(self.tx, updates if params is None else params)
            return run_inside(self.tx, updates, state, params, extra)[0]

        return types_of(first, updates, params)

    def _check_weight(self, state: AccumulateState, extra_args: dict[str, Any]) -> None:
        if (state.weight is None) == self._weighs:
            raise ValueError(f"accumulate: this state was made with another combine than {self.combine!r}; call init")
        if self._weighs and "weight" not in extra_args:
            raise TypeError("accumulate: combine='weighted mean' needs the weight of each: update(..., weight=w)")
        if "weight" in extra_args and not self._weighs:
            raise TypeError(
                f"accumulate: weight= is for combine='weighted mean', and this one has combine={self.combine!r}"
            )


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
    if not inputs.is_number(gradient):
        return gradient
    gradient = jnp.asarray(gradient, compute_dtype(gradient))
    return jnp.where(weight == 0, 0, weight.astype(gradient.dtype) * gradient)


def _flag(emit: Any) -> jax.Array:
    array = isinstance(emit, jax.Array | np.ndarray | np.bool_) and emit.dtype == np.dtype(bool) and emit.shape == ()
    if not isinstance(emit, bool) and not array:
        raise TypeError(f"accumulate: emit must be one bool, found {emit!r}")
    return jnp.asarray(emit)


def _dtypes(tree: Any) -> list[jnp.dtype]:
    return [jnp.result_type(x) for x in jax.tree.leaves(tree)]


def _sum_for(param: Any) -> Any:
    """Where to sum a parameter's gradients; None for what is no number, which has none."""
    return sharded_as(jnp.zeros_like(param, compute_dtype(param)), param) if inputs.is_number(param) else None


def _added(sums: Any, updates: Any, params: Any) -> Any:
    """a + g in the wider of the two, kept as a is; a where there is no gradient to add."""
    given, treedef, counted = _gradients(updates, params)
    held = inputs.leaves_like(treedef, sums)
    flat = inputs.FlatTree.of(_where(counted, given, treedef), "updates").checked()
    others = flat.like(sums if held is None else _where(counted, held, treedef), "accumulated gradients")
    for (path, _), a in zip(flat.named, others, strict=True):
        checks.check_kind(f"sums, leaf {path!r},", a, "floating or complex", who="accumulate")
    flat.check_complex(others, "parameter")
    sums_after = iter([added(a, jnp.asarray(g)) for a, g in zip(others, flat.leaves, strict=True)])
    return treedef.unflatten([next(sums_after) if c else a for c, a in zip(counted, held or others, strict=True)])


def _with_others(combined: Any, updates: Any, params: Any) -> Any:
    """The gradients combined; what came in last where there is none to add."""
    given, treedef, counted = _gradients(updates, params)
    held = treedef.flatten_up_to(combined)
    return treedef.unflatten([a if counts else g for counts, a, g in zip(counted, held, given, strict=True)])


def _gradients(updates: Any, params: Any) -> tuple[list[Any], Any, list[bool]]:
    """The leaves, None among them, the structure, and which are gradients of numbers; of frozen leaves some are not."""
    given, treedef = jax.tree.flatten(updates, is_leaf=lambda g: g is None)
    others = inputs.leaves_like(treedef, params) or given
    return given, treedef, [inputs.is_number(g) and inputs.is_number(p) for g, p in zip(given, others, strict=True)]


def _where(counted: list[bool], leaves: list[Any], treedef: Any) -> Any:
    return treedef.unflatten([x if counts else None for counts, x in zip(counted, leaves, strict=True)])


def _cast(update: Any, like: Any) -> Any:
    return update if inputs.has_no_gradient(update) else update.astype(like.dtype)
