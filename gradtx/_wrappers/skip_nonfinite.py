"""Steps left out where a gradient is inf or NaN."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx._core.contract import AbstractRule
from gradtx._core.control import either, kept
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import integer
from gradtx._core.mesh import check_types, puts_constants, starts
from gradtx._core.numerics import is_complex, is_inexact
from gradtx._engine import inputs
from gradtx._engine.backends import Executor, current
from gradtx._engine.blocks import LEAST
from gradtx._engine.execute import Measured
from gradtx._engine.layout import have_values
from gradtx._engine.transformation import Transformation, check_transformation, measured_first, run_inside, started
from gradtx._wrappers.base import Wrapper, both, checked_state


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


class skip_nonfinite(Wrapper[SkipNonfiniteState]):
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

    Updates of finite gradients are not looked at: one that is infinite because ``tx`` made it so is passed on.

    Arrays sharded over a mesh are one array: an inf or NaN in one shard skips the step on every device; inside
    ``shard_map`` too, where types say what is sharded. With ``check_vma=False`` they do not, and the step is refused,
    unless it stands in ``with replicated():``.

    Raises:
        TypeError: if ``tx`` is no transformation, or ``max_consecutive`` no integer; in ``update``, for a state that
            ``init`` did not make.
        ValueError: for a negative ``max_consecutive``, or one that int32 does not hold; in ``update``, where types do
            not say which gradients are shards.

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

    conditions = {"": "if gradients are finite"}

    tx: optax.GradientTransformation
    max_consecutive: int | None = None

    def arrays_read(self) -> int:
        """The gradients, unless the step begins with a measurement of all of them that shows it anyway."""
        first = self.tx.rules[0] if isinstance(self.tx, Transformation) and self.tx.rules else None
        if first is None or first.where is not None:
            return 1
        return int(type(first).shows_finite is AbstractRule.shows_finite)

    def __post_init__(self):
        check_transformation(self.label, "tx", self.tx)
        object.__setattr__(self, "max_consecutive", limit(self.label, self.max_consecutive))

    def _members(self, state: SkipNonfiniteState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self.tx, state.inner)}

    @starts
    def init(self, params: Any) -> SkipNonfiniteState:
        """The state before the first step: nothing skipped."""
        return SkipNonfiniteState(started(self.tx, params), zero(), zero(), jnp.array(True))

    def run(
        self, updates: Any, state: SkipNonfiniteState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, SkipNonfiniteState]:
        """A step of ``tx`` if all gradients are finite; after too many others in a row NaN."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @puts_constants
    def run_when(
        self,
        when: Any,
        updates: Any,
        state: SkipNonfiniteState,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
    ) -> tuple[Any, SkipNonfiniteState]:
        """``run`` where a flag is true."""
        state = checked_state(self.label, state, SkipNonfiniteState, "skipped", "consecutive")
        check_types(self.label)
        first = measured_first(self.tx, updates, state.inner, params) if when is True else None
        finite = _are_finite(updates, first, when)
        consecutive = jnp.where(finite, 0, incremented(state.consecutive))
        happens = both(when, finite)
        after, inner = run_inside(
            self.tx, updates, state.inner, params, extra, apply_updates, first=first, when=happens
        )
        if self.max_consecutive is not None:
            fails = both(when, consecutive > self.max_consecutive)
            after = either(fails, lambda: jax.tree.map(_nan, after), lambda: after)
        skipped = jnp.where(finite, state.skipped, incremented(state.skipped))
        own = kept(when, (skipped, consecutive, finite), (state.skipped, state.consecutive, state.finite))
        return after, SkipNonfiniteState(inner, *own)


def _nan(x: Any) -> Any:
    return jnp.full_like(x, jnp.nan) if inputs.is_number(x) else x


def _are_finite(updates: Any, first: Measured | None, when: Any) -> jax.Array:
    """As ``all_finite``; where what the step measures anyway shows that they are, without reading them again."""
    shown = None if first is None or len(first.places) < len(_inexact(updates)) else first.shows_finite
    if shown is None:
        return all_finite(updates, when)
    if current(traced=not have_values(updates)).takes_flags:
        return all_finite(updates, ~shown)
    return either(shown, lambda: jnp.array(True), lambda: all_finite(updates))


def all_finite(tree: Any, when: Any = True) -> jax.Array:
    """True if no floating or complex leaf has an inf or a NaN, in any shard; one read of each."""
    leaves = [jnp.asarray(leaf) for leaf in _inexact(tree)]
    return _all_finite(current(traced=not have_values(leaves)), leaves, None if when is True else when)


def _inexact(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_inexact(jnp.result_type(leaf))]


@functools.partial(jax.jit, static_argnums=0)
def _all_finite(executor: Executor, leaves: list[jax.Array], when: jax.Array | None) -> jax.Array:
    """By one sum of 0·x, which is NaN if one of them is inf or NaN, and which no order of adding can make so.

    XLA's plain sums on a CPU take three quarters of that time, and are finite only if all is: a large array is asked
    for 0·x only where its sum is not, be it because finite numbers overflow.
    """
    parts = [part for x in leaves for part in ((x.real, x.imag) if is_complex(x.dtype) else (x,))]
    total = executor.total_when(when)
    first = jax.default_backend() == "cpu" and not executor.takes_flags
    large = [x for x in parts if first and x.size >= LEAST]
    small = [x for x in parts if not (first and x.size >= LEAST)]

    def exact(xs: list[jax.Array]) -> jax.Array:
        return ~jnp.isnan(total(lambda x: 0 * x, xs))

    if not large:
        return exact(small)
    shown = jnp.isfinite(total(lambda x: x, large))
    of_large = either(shown, lambda: jnp.array(True), lambda: exact(large))
    return exact(small) & of_large if small else of_large


def limit(who: str, max_consecutive: Any) -> int | None:
    """The number of steps in a row that may be skipped; None: as many as there are.

    Raises:
        TypeError, ValueError: for something else than an integer from 0.
    """
    return None if max_consecutive is None else integer(who, "max_consecutive", max_consecutive, 0, " or None")
