"""Adam first, then SGD: one transformation until a step, another from then on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx._chain import chain
from gradtx._core.codecs import stored_as
from gradtx._core.control import Once, either, kept
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import check_choice, integer
from gradtx._core.mesh import puts_constants, starts
from gradtx._core.state import ChainState
from gradtx._core.walk import rebuilt
from gradtx._engine.checks import check_injected
from gradtx._engine.transformation import Transformation, check_transformation, run_inside
from gradtx._wrappers.base import Wrapper, both, checked_state, not_yet
from gradtx._wrappers.handover import Moment, Place, place_of, read, written

Carry = Literal["momentum", "reset"]


class SwitchState(NamedTuple):
    """The state of ``switch``. Its structure, shapes and dtypes are the same in both phases.

    Attributes:
        count: steps taken, int32, saturating; those of ``first`` included.
        switched_at: how many steps ``first`` has run, int32, once the switch has happened; -1 before.
        at: the step to switch at, int32. It is data: changing it recompiles nothing, and ``jax.vmap`` can try
            several. None if ``at`` is a condition.
        first: the state of ``first``; frozen after the switch.
        then: the state of ``then``; as its ``init`` made it until the switch.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as optax's states do
    switched_at: jax.Array
    at: jax.Array | None
    first: Any
    then: Any

    @property
    def switched(self) -> jax.Array:
        """True once ``then`` has run: a scalar bool."""
        return self.switched_at >= 0


class switch(Wrapper[SwitchState]):
    r"""One transformation for the first steps, another from then on: the review article's "Adam first, then SGD".

    A step is run by ``first`` or by ``then``, never by both, except under a ``jax.vmap`` in which members of the batch
    switch at different steps. Once switched, it stays switched.

    Args:
        at: how many steps ``first`` runs: an integer at least 0, an integer scalar array (traced ones too), or a
            condition ``at(state) -> bool``, called before each step with the ``SwitchState`` and answered with a
            scalar bool array. A condition sees, for example, ``state.first.slots["rms"]["s"]``.
        first: a gradtx chain, rule or wrapper, or any optax transformation.
        then: likewise.
        carry: what ``then`` starts with. "momentum" (the default): the first moment of ``first``, in the scale of
            ``then``, so that steps go on in the same direction and at full length. "reset": nothing, as in the
            paper of SWATS; heavy ball then stalls for about 1/(1−μ) steps (see below).

    **What is carried.** Each phase must have one first moment: a rule that declares that it ``holds`` an average or a
    trace, as ``momentum``, ``nesterov``, ``trace`` and ``damped_trace`` do. Written with the total weight w that its
    state holds and the weight W that it would hold after infinitely many steps (``steady_weight``), which is 1 for an
    average and 1/(1−μ) for a trace:

        slot ← slot · W'/W,  weight ← w · W'/W      (a prime marks ``then``)
        slot ← slot · W'/w,  weight ← W'            if ``first`` debiases and ``then`` does not

    So the average m = (1−β)·b of the article's momentum and the accumulator b of heavy ball are converted into each
    other exactly, and what Adam debiased is debiased in being handed over, once and for all: b = m̂/(1−μ). Nadam
    debiases by itself. A learning rate or a ``scale`` in front of the first moment (as Keras has it) is divided out
    and multiplied in (``scales_by``); other rules there, such as clips, are taken to leave the scale of the gradient
    alone. V is
    dropped. How long the steps are is then up to the learning rate of ``then`` alone: ``momentum_sgd(Λ)`` and
    ``sgd(Λ·(1−μ), momentum=μ)`` go on with Λ·m̂, where Adam went by α·m̂/√V. ``swats`` estimates such a Λ.

    **What is fresh.** Everything else: ``then`` starts as its ``init`` makes it from the parameters at the switch (from
    those at the start, where ``update`` gets no parameters), with the hyperparameters that the state holds for it.

    **One clock.** ``then`` and every chain in it see the count of all steps, so schedules go on across the switch. So
    does a switch in it: ``switch(100, a, switch(200, b, c))`` runs b for steps 100 to 199. Optax transformations keep
    clocks of their own, and theirs start at the switch. ``damped_trace`` looks at no clock: its first gradient enters
    undamped, unless a moment was carried to it.

    **Parameters** go on as they are held. A ``first`` that ends in ``nag_lookahead`` holds the points looked ahead to,
    y = w + κd with its last step d, and ``then`` goes on from y: the ``offset`` κd is neither subtracted nor handed
    over, and a ``nag_lookahead`` of ``then`` starts with an offset of 0 and y for its iterate. A ``first`` that ends in
    ``two_point_lookahead`` hands over w. ``lookahead_iterate`` and ``lookahead_point`` ask the phase that is on.

    State: ``SwitchState``. Hyperparameters of either phase are data in it: ``state.first`` and ``state.then`` are the
    ``ChainState``s that ``set_hyperparams`` takes.

    Inf and NaN: what the phases do. An average that holds a NaN is carried with it; "reset" leaves it behind.

    Raises:
        TypeError: for a phase that is no transformation, an ``at`` that is no integer, or a condition that does not
            answer with one bool.
        ValueError: for a negative ``at`` or an unknown ``carry``; from ``init``, with the names of the rules, if there
            is nothing to carry, if there is more than one first moment, or if one of the two averages preconditioned
            directions.

    Source: Keskar & Socher (2017), "Improving generalization performance by switching from Adam to SGD", for the idea
    and the reset.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.switch(2, gradtx.adam(0.1), gradtx.sgd(0.01, momentum=0.9)), jnp.array([2.0, -0.5])
    >>> state = tx.init(g)
    >>> for _ in range(4):
    ...     updates, state = tx.update(g, state)
    ...     print(updates.round(3), state.switched)
    [-0.1  0.1] False
    [-0.1  0.1] False
    [-0.2   0.05] True
    [-0.2   0.05] True
    """

    conditions = {"first": "before the switch", "then": "after it"}

    at: ArrayLike | Callable[[SwitchState], Any]
    first: optax.GradientTransformation
    then: optax.GradientTransformation
    carry: Carry = "momentum"

    def __post_init__(self):
        check_choice("switch", "carry", self.carry, ("momentum", "reset"))
        for name in ("first", "then"):
            object.__setattr__(self, name, _transformation(name, getattr(self, name)))
        object.__setattr__(self, "at", self.at if callable(self.at) else step_number("switch", "at", self.at, 0))

    def arrays_read(self) -> int:
        """None: but in the step of the switch."""
        return 0

    def _members(self, state: SwitchState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"first": (self.first, state.first), "then": (self.then, state.then)}

    @starts
    def init(self, params: Any) -> SwitchState:
        """The state before the first step: both phases', and the clock."""
        first, then = self.first.init(params), self.then.init(params)
        if self.carry == "momentum":
            _check_carry(self.first, self.then)
        at = None if callable(self.at) else jnp.asarray(self.at, jnp.int32)
        return SwitchState(zero(), jnp.full((), -1, jnp.int32), at, first, then)

    def run(
        self, updates: Any, state: SwitchState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, SwitchState]:
        """One step of the phase that is on."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @property
    def takes_flag(self) -> bool:
        """True: each of its phases has a condition of its own. Of conditions in conditions XLA copies the arrays."""
        return True

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: SwitchState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, SwitchState]:
        """``run`` where a flag is true."""
        state = checked_state(self.label, state, SwitchState, "count", "switched_at", "at")
        due = state.switched | self._due(state)

        before = both(when, ~due)
        due = both(when, due)
        begins = due & ~state.switched
        if apply_updates:
            params, first = run_inside(self.first, updates, state.first, params, extra, True, when=before)
            then = either(begins, lambda: self._enter(state, first, params), lambda: state.then)
            after, then = run_inside(self.then, updates, then, params, extra, True, when=due)
        else:
            step = Once(lambda g: run_inside(self.first, g, state.first, params, extra, False), updates)
            after, first = either(before, step, lambda: (not_yet(due, step, params, False), state.first))
            then = either(begins, lambda: self._enter(state, first, params), lambda: state.then)
            after, then = either(
                due, lambda: run_inside(self.then, updates, then, params, extra, False), lambda: (after, then)
            )
        counts = incremented(state.count), jnp.where(begins, state.count, state.switched_at)
        count, switched_at = kept(when, counts, (state.count, state.switched_at))
        return after, SwitchState(count, switched_at, state.at, first, then)

    def _due(self, state: SwitchState) -> jax.Array:
        condition = self.at if callable(self.at) else lambda state: state.count >= state.at
        due = jnp.asarray(condition(state))
        if due.shape != () or due.dtype != bool:
            raise TypeError(f"switch: the condition at must return one bool, found {due.dtype} of shape {due.shape}")
        return due

    def _enter(self, state: SwitchState, first: Any, params: Any) -> Any:
        """The state that ``then`` starts with, after the last state of ``first``."""
        fresh = state.then if params is None else self.then.init(params)
        started = _started(fresh, state.then, state.count)
        return started if self.carry == "reset" else _write(self.then, started, _read(self.first, first))


def _transformation(name: str, tx: Any) -> Transformation[Any]:
    if isinstance(tx, Transformation):
        return tx
    check_transformation("switch", name, tx)
    return chain(tx)


def _leaving(tx: Any) -> Iterator[Place]:
    """The first moments that a phase may leave behind."""
    if isinstance(tx, switch):
        yield from (*_leaving(tx.first), *_leaving(tx.then))
    else:
        yield place_of(tx)


def _entering(tx: Any) -> Place:
    """The first moment that a phase begins with."""
    return _entering(tx.first) if isinstance(tx, switch) else place_of(tx)


def _check_carry(first: Any, then: Any) -> None:
    entering = _entering(then)
    for leaving in _leaving(first):
        if leaving.changes() != entering.changes():
            culprit = next(rule for place in (leaving, entering) for rule in place.changes())
            raise ValueError(
                f"switch: {leaving.name!r} of the first phase and {entering.name!r} of the second average different "
                f"things: {culprit} stands before one of them, which then does not average gradients. Put the first "
                "moment before it, or start afresh with carry='reset'."
            )


def _read(tx: Any, state: Any) -> Moment:
    """The results of a phase."""
    if isinstance(tx, switch):
        moments = _read(tx.then, state.then), _read(tx.first, state.first)
        return jax.tree.map(functools.partial(jnp.where, state.switched), *moments)
    return read(tx, state)


def _write(tx: Any, state: Any, moment: Moment) -> Any:
    """The state of a phase that begins with this first moment."""
    if isinstance(tx, switch):
        return state._replace(first=_write(tx.first, state.first, moment))
    return written(tx, state, moment)


def _started(fresh: Any, before: Any, count: jax.Array) -> Any:
    """A fresh state that keeps the hyperparameters of the one before, at this count."""

    def started(fresh: Any, before: Any) -> Any:
        if isinstance(fresh, ChainState):
            slots = _started(fresh.slots, before.slots, count)
            return fresh._replace(count=count, hyperparams=before.hyperparams, slots=slots)
        first, then = (_started(getattr(fresh, x), getattr(before, x), count) for x in ("first", "then"))
        return SwitchState(count, fresh.switched_at, before.at, first, then)

    return jax.tree.map(stored_as, rebuilt(fresh, (ChainState, SwitchState), started, before), before)


def step_number(who: str, name: str, value: Any, low: int) -> Any:
    """An integer, or a traced one as it is."""
    check_injected(f"{who}: {name}", value)
    if isinstance(value, jax.core.Tracer) and value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    return integer(who, name, value, low)
