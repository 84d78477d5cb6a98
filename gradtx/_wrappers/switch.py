"""Adam first, then SGD: one transformation until a step, another from then on."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx._chain import Chain, chain
from gradtx._core.control import either
from gradtx._core.limits import check_choice
from gradtx._core.mesh import puts_constants, starts, sum_of
from gradtx._core.numerics import complement, compute_dtype, mix, real_dtype, safe_divide, widened
from gradtx._core.state import ChainState
from gradtx._engine.checks import check_counts, check_injected, check_kind
from gradtx._wrappers.base import Wrapper
from gradtx.rules import (
    damped_trace,
    debias,
    momentum,
    nesterov,
    precondition,
    rms,
    scale,
    scale_by_learning_rate,
    sign,
    trace,
)
from gradtx.rules.base import Hyper, Rule, Transformation

Hyperparams = dict[str, dict[str, jax.Array]]

Carry = Literal["momentum", "reset"]
"""What the second phase starts with: the first moment of the first, or nothing."""


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
        """Whether ``then`` has run: a scalar bool."""
        return self.switched_at >= 0


class switch(Wrapper):
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

    **What is carried.** Each phase must have one first moment: ``momentum``, ``nesterov``, ``trace`` or
    ``damped_trace``. Written with the total weight w that its state holds and the weight W that it would hold after
    infinitely many steps, which is 1 for an average and 1/(1−μ) for a trace:

        slot ← slot · W'/W,  weight ← w · W'/W      (a prime marks ``then``)
        slot ← slot · W'/w,  weight ← W'            if ``first`` debiases and ``then`` does not

    So the average m = (1−β)·b of the article's momentum and the accumulator b of heavy ball are converted into each
    other exactly, and what Adam debiased is debiased in being handed over, once and for all: b = m̂/(1−μ). Nadam
    debiases by itself. A learning rate or a ``scale`` in front of the first moment (as Keras has it) is divided out
    and multiplied in; other rules there, such as clips, are taken to leave the scale of the gradient alone. V is
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

    at: ArrayLike | Callable[[SwitchState], Any]
    first: optax.GradientTransformation
    then: optax.GradientTransformation
    carry: Carry = "momentum"

    def __post_init__(self):
        check_choice("switch", "carry", self.carry, ("momentum", "reset"))
        for name in ("first", "then"):
            object.__setattr__(self, name, _transformation(name, getattr(self, name)))
        object.__setattr__(self, "at", self.at if callable(self.at) else _step_number("switch: at", self.at, 0))

    def _members(self, state: SwitchState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"first": (self.first, state.first), "then": (self.then, state.then)}

    @starts
    def init(self, params: Any) -> SwitchState:
        """The state before the first step: both phases', and the clock."""
        first, then = self.first.init(params), self.then.init(params)
        if self.carry == "momentum":
            _check_carry(self.first, self.then)
        at = None if callable(self.at) else jnp.asarray(self.at, jnp.int32)
        return SwitchState(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), at, first, then)

    @puts_constants
    def update(
        self, updates: Any, state: SwitchState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, SwitchState]:
        """One step of the phase that is on; arguments as those of any transformation."""
        _check_state("switch", state, SwitchState)
        due = state.switched | self._due(state)
        tx = optax.with_extra_args_support

        def first():
            out, after = tx(self.first).update(updates, state.first, params, **extra_args)
            return out, after, state.then

        def then():
            ready = either(state.switched, lambda: state.then, lambda: self._enter(state, params))
            out, after = tx(self.then).update(updates, ready, params, **extra_args)
            return out, state.first, after

        out, first_after, then_after = either(~due, first, then)
        switched_at = jnp.where(due & ~state.switched, state.count, state.switched_at)
        return out, SwitchState(_next(state.count), switched_at, state.at, first_after, then_after)

    def _due(self, state: SwitchState) -> jax.Array:
        condition = self.at if callable(self.at) else lambda state: state.count >= state.at
        due = jnp.asarray(condition(state))
        if due.shape != () or due.dtype != bool:
            raise TypeError(f"switch: the condition at must return one bool, found {due.dtype} of shape {due.shape}")
        return due

    def _enter(self, state: SwitchState, params: Any) -> Any:
        """The state that ``then`` starts with."""
        fresh = state.then if params is None else self.then.init(params)
        started = _started(fresh, state.then, state.count)
        if self.carry == "reset":
            return started
        return _write(self.then, started, _read(self.first, state.first))


class SwatsState(NamedTuple):
    """The state of ``swats``: that of Adam, and four scalars. The SGD phase uses Adam's m, and leaves s alone.

    Attributes:
        count: steps taken, int32, saturating; those of Adam included.
        switched_at: how many steps Adam has run, int32, once SGD has taken over; -1 before.
        average: λ/α, the moving average of γ/α, of total weight 1 − b2ᵏ; frozen after the switch.
        sgd_rate: Λ. Before the switch the debiased estimate so far (0 before the first step); then the learning rate
            of SGD in the last step.
        inner: the ``ChainState`` of Adam: every hyperparameter, and the slots ``momentum.m`` and ``rms.s``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as optax's states do
    switched_at: jax.Array
    average: jax.Array
    sgd_rate: jax.Array
    inner: ChainState

    @property
    def switched(self) -> jax.Array:
        """Whether SGD runs: a scalar bool."""
        return self.switched_at >= 0


class swats(Wrapper):
    r"""SWATS: Adam until its steps say which learning rate SGD should have, then SGD with that.

    Adam's step p_k = −α·√(1−b2ᵏ)/(1−b1ᵏ)·m/(√v + ε) is projected on the gradient: γ_k = p·p/(−p·g) is the learning rate
    with which the step of SGD, projected on p, is p. With the average λ ← b2·λ + (1−b2)·γ and its debiased λ̂ =
    λ/(1−b2ᵏ), Adam ends after the first step with

        k > 1,  k ≥ min_steps,  |λ̂ − γ| < rtol·|λ̂|,  λ̂ > 0

    and Λ = λ̂. From then on m ← b1·m + (1−b1)·g and w ← w − Λ·m, from m = 0: the paper's heavy ball v = m/(1−b1) with
    learning rate (1−b1)·Λ. p and g are the whole tree's, so there is one Λ and one switch.

    Args:
        learning_rate: α of Adam. For a schedule, γ/α is averaged rather than γ, and Λ is its average times this step's
            α: the SGD phase follows the schedule. At constant α that is the paper's Λ.
        b1: of m in [0, 1), in both phases. 0.9 as in the paper.
        b2: of v and of λ in [0, 1). 0.999 as in the paper.
        eps: ε outside the root of the v not debiased. 1e-9 as in the paper, where it is also the tolerance.
        rtol: the relative tolerance, 1e-4; None for the paper's |λ̂ − γ| < eps. An absolute one depends on the scale of
            the loss, γ being inversely proportional to it. γ is noisy, and meets λ̂ by chance: on a noisy quadratic in
            200 dimensions one step in 200 was within 1e-3, one in 1,900 within 1e-4, and none of 87,000 within the
            paper's 1e-9 absolute. λ̂ is the answer either way; the tolerance says how long to wait.
        min_steps: Adam's steps at least, 1000 = 1/(1−b2), as many as λ averages over; 1 for the paper's k > 1. At
            k = 2 the two differ by b2/(1+b2)·|γ₁−γ₂|, half of one step's change, so that a loose tolerance ends Adam
            there.
        positive: whether Λ must be positive. False as in the paper, where SGD with a Λ < 0 would climb: γ > 0 is sure
            only for b1 = 0.
        carry: "reset", m = 0, as in the paper: steps are 1−b1 as long at first, and grow over 1/(1−b1) steps.
            "momentum" keeps Adam's m̂ instead.

    ``swats(α, rtol=None, min_steps=1, positive=False)`` is the paper's Algorithm 1 to the letter.

    A step with p·g = 0 leaves λ as it is, as in the paper, though its weight 1 − b2ᵏ grows; so does one whose γ is not
    finite. A NaN or Inf in a gradient stays in m and v, as in Adam; if all γ are NaN from then on, it never switches.

    Arithmetic, p, the projections and the averages are in float32 or wider for low-precision gradients. For complex
    leaves p·g is the real part of the inner product, that of the real and imaginary parts as separate parameters, and
    Adam's |g|² is the squared modulus.

    State: ``SwatsState``, as large as Adam's: both phases share m. Reads no ``params``.

    Raises:
        ValueError: for a decay outside [0, 1), an eps below 0, an rtol not above 0, a min_steps below 1, or an unknown
            carry.
        TypeError: for something else than such numbers.

    Source: Keskar & Socher (2017), "Improving generalization performance by switching from Adam to SGD", Algorithm 1.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.swats(0.01, rtol=0.05, min_steps=20), jnp.array([3.0, -2.0])
    >>> state = tx.init(params)
    >>> for _ in range(60):
    ...     updates, state = tx.update(params * jnp.array([1.0, 2.0]), state)
    ...     params = params + updates
    >>> print(state.switched, state.switched_at, state.sgd_rate.round(4))
    True 20 0.003
    """

    learning_rate: Hyper
    b1: Hyper = 0.9
    b2: Hyper = 0.999
    eps: Hyper = 1e-9
    rtol: float | None = 1e-4
    min_steps: int = 1000
    positive: bool = True
    carry: Carry = "reset"

    def __post_init__(self):
        check_choice("swats", "carry", self.carry, ("momentum", "reset"))
        if not isinstance(self.positive, bool):
            raise TypeError(f"swats: positive must be True or False, found {self.positive!r}")
        if self.rtol is not None:
            object.__setattr__(self, "rtol", _tolerance(self.rtol))
        object.__setattr__(self, "min_steps", _step_number("swats: min_steps", self.min_steps, 1))
        first, second, quotient, _, rate = self._adam.rules  # which have checked their hyperparameters
        for name, value in (
            ("learning_rate", rate.hyperparameters()["learning_rate"]),
            ("b1", first.hyperparameters()["decay"]),
            ("b2", second.hyperparameters()["decay"]),
            ("eps", quotient.hyperparameters()["eps"]),
        ):
            object.__setattr__(self, name, value)

    @functools.cached_property
    def _adam(self) -> Chain:
        averages = chain(momentum(self.b1), rms(self.b2))
        return chain(averages, precondition(self.eps), debias(), scale_by_learning_rate(self.learning_rate))

    @functools.cached_property
    def _sgd(self) -> Chain:
        return chain(momentum(self.b1), scale(1.0), scale_by_learning_rate(self.learning_rate))

    def _members(self, state: SwatsState) -> dict[str, tuple[optax.GradientTransformation, Any]]:
        return {"": (self._adam, state.inner)}

    @starts
    def init(self, params: Any) -> SwatsState:
        """The state before the first step."""
        inner = self._adam.init(params)
        average, rate = (jnp.zeros_like(_learning_rate(inner)) for _ in range(2))
        return SwatsState(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), average, rate, inner)

    @puts_constants
    def update(self, updates: Any, state: SwatsState, params: Any = None, **extra_args: Any) -> tuple[Any, SwatsState]:
        """One step of Adam or of SGD; ``params`` and the extra arguments are not read."""
        del extra_args
        _check_state("swats", state, SwatsState)
        for field in ("average", "sgd_rate"):
            check_kind(field, getattr(state, field), "floating", shape=(), who="swats")
        wide = jax.tree.map(widened, updates)

        def adam():
            steps, inner = self._adam.update(wide, state.inner, params)
            return steps, self._estimated(state._replace(inner=inner), wide, steps)

        def sgd():
            return self._sgd_step(wide, state, params)

        steps, after = either(~state.switched, adam, sgd)
        out = jax.tree.map(lambda step, g: step.astype(jnp.result_type(g)), steps, updates)
        return out, after._replace(count=_next(state.count))

    def _estimated(self, state: SwatsState, grads: Any, steps: Any) -> SwatsState:
        """The state after a step of Adam, with its γ averaged in, and the switch if it is time."""
        h, k = state.inner.hyperparams, _next(state.count)
        alpha, b2, eps = _learning_rate(state.inner), h["rms"]["decay"], h["precondition"]["eps"]
        along = -_dot(steps, grads).astype(alpha.dtype)
        ratio = safe_divide(safe_divide(_dot(steps, steps).astype(alpha.dtype), along), alpha)
        usable = (along != 0) & jnp.isfinite(ratio)
        average = jnp.where(usable, mix(b2, complement(h["rms"], "decay"), state.average, ratio), state.average)
        estimate = _debiased(average, state.inner)
        gap = jnp.abs(estimate - ratio)
        close = jnp.abs(alpha) * gap < eps if self.rtol is None else gap < self.rtol * jnp.abs(estimate)
        done = usable & close & (k > 1) & (k >= self.min_steps)
        if self.positive:
            done &= alpha * estimate > 0
        switched_at = jnp.where(done, _next(state.count), state.switched_at)
        return state._replace(switched_at=switched_at, average=average, sgd_rate=alpha * estimate)

    def _sgd_step(self, grads: Any, state: SwatsState, params: Any) -> tuple[Any, SwatsState]:
        """A step of ``momentum_sgd`` with learning rate Λ, on the m of Adam's state."""
        inner = state.inner
        ratio = _debiased(state.average, inner)
        first_step = state.count == state.switched_at
        held = {"momentum": either(first_step, lambda: self._handed_over(inner), lambda: inner.slots["momentum"])}
        hyperparams = {name: own for name, own in inner.hyperparams.items() if name in self._sgd.names}
        hyperparams["scale"] = {"factor": ratio}
        steps, after = self._sgd.update(grads, ChainState(inner.count, hyperparams, held), params)
        kept = {name: after.hyperparams.get(name, own) for name, own in inner.hyperparams.items()}
        inner = inner._replace(count=after.count, hyperparams=kept, slots=inner.slots | after.slots)
        return steps, state._replace(sgd_rate=_learning_rate(inner) * ratio, inner=inner)

    def _handed_over(self, inner: ChainState) -> dict[str, Any]:
        slots = inner.slots["momentum"]
        if self.carry == "reset":
            return jax.tree.map(jnp.zeros_like, slots)
        factor = safe_divide(jnp.ones_like(slots["weight"]), slots["weight"])
        return {"m": _scaled(factor, slots["m"]), "weight": factor * slots["weight"]}


# ---------------------------------------------------------------------------------------------------------------------
# What is carried from one phase to the next
# ---------------------------------------------------------------------------------------------------------------------


class _Moment(NamedTuple):
    """A first moment as it is handed over.

    Attributes:
        tree: the slot.
        weight: the total weight of the gradients in it.
        steady: the weight it would have after infinitely many steps.
        gain: the factor by which its chain scales the gradients before.
        debiased: whether its chain debiases it.
    """

    tree: Any
    weight: jax.Array
    steady: jax.Array
    gain: jax.Array
    debiased: jax.Array


class _Place(NamedTuple):
    """Where in a chain the first moment is: its rule and slot, the rules before it, and whether it is debiased."""

    name: str
    rule: Rule
    slot: str
    before: Sequence[tuple[str, Rule]]
    debiased: bool

    def steady(self, hyperparams: Hyperparams) -> jax.Array:
        """The weight after infinitely many steps."""
        h = hyperparams[self.name]
        if isinstance(self.rule, trace | damped_trace):
            return complement({"dampening": 0.0} | h, "dampening") / complement(h, "decay")
        return jnp.ones_like(h["decay"])

    def gain(self, hyperparams: Hyperparams) -> jax.Array:
        """The factor by which the rules before it scale the gradient."""
        gain = jnp.ones_like(hyperparams[self.name]["decay"])
        for name, rule in self.before:
            if isinstance(rule, scale):
                gain = gain * hyperparams[name]["factor"]
            elif isinstance(rule, scale_by_learning_rate):
                gain = -gain * hyperparams[name]["learning_rate"]
        return gain

    def changes(self) -> list[Rule]:
        """The rules before it that make something else of the gradient, which an average of theirs is not one of."""
        return [rule for _, rule in self.before if rule.second_moment is not None or isinstance(rule, sign)]


_SLOTS = {momentum: "m", nesterov: "m", trace: "b", damped_trace: "b"}


def _place(tx: Transformation) -> _Place:
    """The one first moment of a chain."""
    named = list(zip(tx.names, tx.rules, strict=True))
    found = [i for i, (_, rule) in enumerate(named) if isinstance(rule, tuple(_SLOTS))]
    if len(found) != 1:
        has = "has none" if not found else f"has {len(found)}: {', '.join(repr(tx.names[i]) for i in found)}"
        raise ValueError(
            "switch: carry='momentum' hands over one first moment (momentum, nesterov, trace or damped_trace), and the "
            f"chain of rules {', '.join(map(repr, tx.names)) or '(none)'} {has}. Change the chain (sgd, for example, "
            "takes momentum=0.9), or start afresh with carry='reset'."
        )
    (i,) = found
    name, rule = named[i]
    slot = next(slot for kind, slot in _SLOTS.items() if isinstance(rule, kind))
    scaling = [*named[: i + 1], *((its, one) for its, one in named[i:] if isinstance(one, debias))]
    restricted = [own for own, one in scaling if one.where is not None]
    if restricted:
        raise ValueError(
            f"switch: carry='momentum' hands over the first moment of all leaves, and rule {restricted[0]!r} is for "
            "some only. Put a switch in each part of a partition, or start afresh with carry='reset'."
        )
    debiased = any(isinstance(rule, debias | nesterov) for _, rule in named[i:])
    return _Place(name, rule, slot, named[:i], debiased)


def _leaving(tx: Any) -> Iterator[_Place]:
    """The first moments that a phase may leave behind."""
    if isinstance(tx, switch):
        yield from (*_leaving(tx.first), *_leaving(tx.then))
    else:
        yield _place(tx)


def _entering(tx: Any) -> _Place:
    """The first moment that a phase begins with."""
    return _entering(tx.first) if isinstance(tx, switch) else _place(tx)


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


def _read(tx: Any, state: Any) -> _Moment:
    """What a phase leaves behind."""
    if isinstance(tx, switch):
        moments = _read(tx.then, state.then), _read(tx.first, state.first)
        return jax.tree.map(functools.partial(jnp.where, state.switched), *moments)
    place, h = _place(tx), state.hyperparams
    slots = state.slots[place.name]
    debiased = jnp.asarray(place.debiased)
    return _Moment(slots[place.slot], slots["weight"], place.steady(h), place.gain(h), debiased)


def _write(tx: Any, state: Any, moment: _Moment) -> Any:
    """The state of a phase that begins with this first moment."""
    if isinstance(tx, switch):
        return state._replace(first=_write(tx.first, state.first, moment))
    place, h = _place(tx), _this_step(tx, state)
    unbias = moment.debiased & (not place.debiased)
    factor = safe_divide(place.steady(h), jnp.where(unbias, moment.weight, moment.steady))
    tree = _scaled(factor * safe_divide(place.gain(h), moment.gain), moment.tree)
    carried = {place.slot: tree, "weight": factor * moment.weight}
    return state._replace(slots=state.slots | {place.name: jax.tree.map(_like, carried, state.slots[place.name])})


def _this_step(tx: Transformation, state: ChainState) -> Hyperparams:
    """The hyperparameters that the next update will use."""
    return {name: {} for name in tx.names} | tx._lifted._hyperparams(state.count, None, state.hyperparams)


def _started(fresh: Any, held: Any, count: jax.Array) -> Any:
    """A fresh state that keeps the hyperparameters held, at this count."""

    def one(fresh: Any, held: Any) -> Any:
        if isinstance(fresh, ChainState):
            slots = _started(fresh.slots, held.slots, count)
            return fresh._replace(count=count, hyperparams=held.hyperparams, slots=slots)
        if isinstance(fresh, SwitchState):
            inner = [_started(*states, count) for states in ((fresh.first, held.first), (fresh.then, held.then))]
            return SwitchState(count, fresh.switched_at, held.at, *inner)
        return _like(fresh, held)

    return jax.tree.map(one, fresh, held, is_leaf=lambda x: isinstance(x, ChainState | SwitchState))


# ---------------------------------------------------------------------------------------------------------------------
# Small things
# ---------------------------------------------------------------------------------------------------------------------


def _next(count: jax.Array) -> jax.Array:
    return jnp.asarray(optax.safe_increment(count))


def _like(new: Any, old: Any) -> jax.Array:
    return jnp.asarray(new, jnp.asarray(old).dtype)


def _scaled(factor: jax.Array, tree: Any) -> Any:
    """Each leaf times a real scalar, in the leaf's dtype, float32 at least."""

    def one(x: jax.Array) -> jax.Array:
        wide = compute_dtype(x)
        return (factor.astype(real_dtype(wide)) * x.astype(wide)).astype(x.dtype)

    return jax.tree.map(one, tree)


def _dot(xs: Any, ys: Any) -> jax.Array:
    """The real part of the inner product of two trees over all shards, in the widest of their dtypes, float32 at least.

    As a sum of products: a matrix product would be rounded to fewer bits on some devices.
    """
    products = jax.tree.map(lambda x, y: jnp.sum((x.conj() * y).real), xs, ys)
    return sum_of(jax.tree.leaves(products))


def _learning_rate(state: ChainState) -> jax.Array:
    return state.hyperparams["scale_by_learning_rate"]["learning_rate"]


def _debiased(average: jax.Array, adam: ChainState) -> jax.Array:
    """λ/(1 − b2ᵏ): rms carries that weight, and does not cancel in doing so."""
    return safe_divide(average, adam.slots["rms"]["weight"])


def _transformation(name: str, tx: Any) -> Transformation:
    if isinstance(tx, Transformation):
        return tx
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"switch: {name} must be a gradtx or optax transformation, found {tx!r}")
    return chain(tx)


def _step_number(what: str, value: Any, low: int) -> Any:
    """An integer, or a traced one as it is."""
    check_injected(what, value)
    if isinstance(value, jax.core.Tracer) and value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    try:
        number = None if isinstance(value, bool | jax.core.Tracer) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{what} must be an integer, found {value!r}")
    if not low <= number <= jnp.iinfo(jnp.int32).max:
        raise ValueError(f"{what} must be an int32 of at least {low}, found {number}")
    return number


def _tolerance(rtol: Any) -> float:
    try:
        number = math.nan if isinstance(rtol, bool) else float(rtol)
    except TypeError:
        raise TypeError(f"swats: rtol must be a number or None, found {rtol!r}") from None
    if not number > 0:
        raise ValueError(f"swats: rtol must be above 0, or None for the paper's tolerance, found {rtol!r}")
    return number


def _check_state(name: str, state: Any, kind: type[Any]) -> None:
    if not isinstance(state, kind):
        raise TypeError(
            f"{name}: update needs the {kind.__name__} that its init returned, found {type(state).__name__}. The "
            "arguments are update(updates, state, params)."
        )
    at = {} if getattr(state, "at", None) is None else {"at": state.at}
    check_counts(name, count=state.count, switched_at=state.switched_at, **at)
