"""Gradient accumulation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._chain import Chain
from gradtx._core.control import Once, either, kept, types_of
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import integer
from gradtx._core.mesh import puts_constants, sharded_as, starts
from gradtx._core.numerics import added, compute_dtype, real_dtype, safe_divide
from gradtx._engine import checks, inputs
from gradtx._engine.backends import current
from gradtx._engine.engine import applied
from gradtx._engine.layout import have_values
from gradtx._engine.transformation import (
    check_transformation,
    run_inside,
    seen_by,
    started,
    takes_as_data,
    unchanged,
)
from gradtx._wrappers.base import Wrapper, both, checked_state
from gradtx._wrappers.front import dividing, gathering, weighted, with_front, without_front

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


class accumulate(Wrapper[AccumulateState]):
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

    conditions = {"": "if the batch is complete"}

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
        return AccumulateState(started(self.tx, self._seen(params)), sums, zero(), zero(), zero(), weight)

    def run(
        self, updates: Any, state: AccumulateState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, AccumulateState]:
        """A step of ``tx`` with the mean if this micro-batch completes its batch."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: AccumulateState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, AccumulateState]:
        """``run`` where a flag is true."""
        state = checked_state(self.label, state, AccumulateState, "held", "micro_steps", "emitted")
        self._check_weight(state, extra)
        _check_gradients(state.sums, updates, params)
        asked = _flag(extra.get("emit", False))
        if self._passes:
            after, inner = run_inside(self.tx, updates, state.inner, params, extra, apply_updates, when=when)
            counts = incremented(state.micro_steps), incremented(state.emitted)
            micro_steps, emitted = kept(when, counts, (state.micro_steps, state.emitted))
            return after, state._replace(inner=inner, micro_steps=micro_steps, emitted=emitted)
        number = total = state.held + 1
        complete = asked | (number >= (self.every(state.emitted) if callable(self.every) else self.every))
        weight = None
        if state.weight is not None:
            weight = _weighed(extra["weight"], state.sums)
            total = state.weight + weight
            extra = extra | {"weight": total}

        happens = both(when, complete)
        if (gathering := self._gathering_for(happens, state, updates, params)) is not None:
            sums = _added(state.sums, updates, params, weight, both(when, ~complete))
            numbers = {"divisor": total, "weight": weight}
            numbers = {name: x for name, x in numbers.items() if name in gathering.rules[0].hyperparameters()}
            inner = with_front(gathering, state.inner, numbers, {"sum": sums})
            after, inner = run_inside(gathering, updates, inner, params, extra, apply_updates, when=happens)
            inner, own = without_front(gathering, inner, state.inner)
            return after, self._counted(state, when, complete, inner, own["sum"], number, total)

        sums = _added(state.sums, updates, params, weight)
        step = Once(lambda a: (*self._emit(a, total, updates, state.inner, params, extra, apply_updates), True), sums)
        same = lambda: (unchanged(step, params, apply_updates), state.inner, False)  # noqa: E731
        after, inner, done = either(complete, step, same)
        sums = either(done, lambda: jax.tree.map(jnp.zeros_like, sums), lambda: sums)
        return after, self._counted(state, when, complete, inner, sums, number, total)

    def _counted(
        self, state: AccumulateState, when: Any, complete: Any, inner: Any, sums: Any, number: Any, total: Any
    ) -> AccumulateState:
        """The next state: so many held, of this weight in all, unless the batch is complete."""
        after = AccumulateState(
            state.inner,
            state.sums,
            jnp.where(complete, 0, number),
            incremented(state.micro_steps),
            jnp.where(complete, incremented(state.emitted), state.emitted),
            None if state.weight is None else jnp.where(complete, 0, total),
        )
        return kept(when, after, state)._replace(inner=inner, sums=sums)

    def _gathering_for(self, flag: Any, state: AccumulateState, updates: Any, params: Any) -> Chain | None:
        """The chain whose own pass adds the last gradient, and leaves zeros; where the flag is data of that pass."""
        tx = self._gathering
        if tx is None or not takes_as_data(flag, tx, updates, state, params):
            return None
        given, _, counted = _gradients(updates, params)
        gradients, seen = _with_others(state.sums, updates, params), self._seen(params)
        alike = _dtypes(gradients) == _dtypes(updates) and _dtypes(seen) == _dtypes(params)
        return tx if all(counted) and alike and given else None

    def _emit(
        self,
        sums: Any,
        total: jax.Array,
        updates: Any,
        inner: Any,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
    ) -> tuple[Any, Any]:
        """A step of ``tx`` with a/n in float32 or wider, whose updates have the dtypes that it alone gives."""
        whole = all(_gradients(updates, params)[2])
        gradients = _with_others(sums, updates, params)
        seen = self._seen(params)
        alike = _dtypes(gradients) == _dtypes(updates) and _dtypes(seen) == _dtypes(params)
        if self.combine != "sum":
            if whole and alike and self._dividing is not None:
                own = with_front(self._dividing, inner, {"divisor": total}, {})
                after, own = run_inside(self._dividing, sums, own, params, extra, apply_updates)
                return after, without_front(self._dividing, own, inner)[0]
            mean = jax.tree.map(lambda a: safe_divide(a, total.astype(a.dtype)), sums)
            gradients = _with_others(mean, updates, params)
        if alike:
            return run_inside(self.tx, gradients, inner, params, extra, apply_updates)
        after, inner = run_inside(self.tx, gradients, inner, seen, extra, apply_updates=False)
        after = jax.tree.map(_cast, after, self._types_alone(updates, params, extra))
        return applied(params, after) if apply_updates else after, inner

    def _types_alone(self, updates: Any, params: Any, extra: dict[str, Any]) -> Any:
        """The types of the updates that ``tx`` alone would give for these gradients."""

        def first(updates: Any, params: Any) -> Any:
            state = started(self.tx, updates if params is None else params)
            return run_inside(self.tx, updates, state, params, extra, apply_updates=False)[0]

        return types_of(first, updates, params)

    @functools.cached_property
    def _dividing(self) -> Chain | None:
        return dividing(self.tx)

    @functools.cached_property
    def _gathering(self) -> Chain | None:
        return gathering(self.tx, self.combine != "sum", self._weighs)

    @property
    def takes_flag(self) -> bool:
        """True if the steps of ``tx`` take flags, and what is added up is added in them."""
        return super().takes_flag and (self._passes or self._gathering is not None)

    def arrays_read(self) -> int:
        """The gradient and the sum, and the sum after it; in the last micro-step that is part of the step."""
        return 0 if self._passes else 3

    @property
    def _weighs(self) -> bool:
        return self.combine == "weighted mean"

    @property
    def _passes(self) -> bool:
        """True if ``tx`` gets the gradients as they are."""
        return self.every == 1 and self.combine == "mean"

    def _seen(self, params: Any) -> Any:
        """The parameters as ``tx`` gets them: lifted as the gradients are."""
        return params if self._passes else seen_by(self.tx, params)

    def _check_weight(self, state: AccumulateState, extra: dict[str, Any]) -> None:
        if (state.weight is None) == self._weighs:
            raise ValueError(f"accumulate: this state was made with another combine than {self.combine!r}; call init")
        if self._weighs and "weight" not in extra:
            raise TypeError("accumulate: combine='weighted mean' needs the weight of each: update(..., weight=w)")
        if "weight" in extra and not self._weighs:
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


def _flag(emit: Any) -> jax.Array:
    array = isinstance(emit, jax.Array | np.ndarray | np.bool_) and emit.dtype == np.dtype(bool) and emit.shape == ()
    if not isinstance(emit, bool) and not array:
        raise TypeError(f"accumulate: emit must be one bool, found {emit!r}")
    return jnp.asarray(emit)


def _dtypes(tree: Any) -> list[jnp.dtype]:
    return [jnp.result_type(x) for x in jax.tree.leaves(tree)]


def _sum_for(param: Any) -> Any:
    """The sum of a parameter's gradients before the first; None for what is no number, which has none."""
    return sharded_as(jnp.zeros_like(param, compute_dtype(param)), param) if inputs.is_number(param) else None


def _check_gradients(sums: Any, updates: Any, params: Any) -> None:
    """Refuses gradients that do not belong to these sums."""
    given, treedef, counted = _gradients(updates, params)
    held = inputs.leaves_like(treedef, sums)
    flat = inputs.FlatTree.of(_where(counted, given, treedef), "updates").checked()
    others = flat.like(sums if held is None else _where(counted, held, treedef), "accumulated gradients")
    for (path, _), a in zip(flat.named, others, strict=True):
        checks.check_kind(f"sums, leaf {path!r},", a, "floating or complex", who="accumulate")
    flat.check_complex(others, "parameter")


def _added(sums: Any, updates: Any, params: Any, weight: jax.Array | None, when: Any = True) -> Any:
    """a + wg in the wider of the two, kept as a is; a where there is no gradient to add."""
    given, treedef, counted = _gradients(updates, params)
    held = treedef.flatten_up_to(sums)
    rows = [(a, jnp.asarray(g)) for a, g, counts in zip(held, given, counted, strict=True) if counts]
    executor = current(traced=not have_values(rows))
    after = iter(_each_added(executor, rows, weight, None if when is True else when))
    return treedef.unflatten([next(after) if counts else a for a, counts in zip(held, counted, strict=True)])


@functools.partial(jax.jit, static_argnums=0, inline=True)  # outside of jit traced once
def _each_added(
    executor: Any, rows: list[tuple[jax.Array, jax.Array]], weight: jax.Array | None, when: jax.Array | None
) -> list[jax.Array]:
    after, _ = executor.map_leaves(_joined, rows, [] if weight is None else [weight], [], {0: 0}, when=when)
    return [a for (a,) in after]


def _joined(a: jax.Array, gradient: jax.Array, weight: jax.Array | None = None) -> tuple[jax.Array]:
    """a + wg; a for w = 0, whatever g is."""
    wide = gradient if weight is None else gradient.astype(compute_dtype(gradient))
    return (added(a, weighted(wide, weight)),)


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
