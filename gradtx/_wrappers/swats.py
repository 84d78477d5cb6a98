"""Adam until its steps say which learning rate SGD should have, then SGD: SWATS."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradtx._chain import Chain, chain
from gradtx._core.contract import Named
from gradtx._core.control import Once, either, kept
from gradtx._core.counts import incremented, zero
from gradtx._core.limits import check_choice, number
from gradtx._core.mesh import check_types, puts_constants, starts
from gradtx._core.numerics import complement, mix, safe_divide, stacked
from gradtx._core.state import ChainState
from gradtx._engine.checks import check_kind
from gradtx._engine.transformation import run_inside
from gradtx._wrappers import handover
from gradtx._wrappers.base import Wrapper, both, checked_state, not_yet
from gradtx._wrappers.switch import Carry, step_number
from gradtx.rules import debias, momentum, precondition, rms, scale, scale_by_learning_rate
from gradtx.rules.base import Hyper, Rule

_LAST = jnp.iinfo(jnp.int32).max


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
        """True while SGD runs: a scalar bool."""
        return self.switched_at >= 0


class projection(Rule):
    """The inner products of a step p with the gradient and with itself, over all leaves and shards; changes nothing.

    State: the real part of p·g, and p·p, in the widest of the dtypes of arithmetic.
    """

    equation = r"u \leftarrow u"
    observes = ("incoming", "direction")

    def init_tree(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """Zeros."""
        return jnp.zeros(()), jnp.zeros(())

    def terms(self, lanes: Named) -> dict[str, tuple[Any, jax.Array]]:
        """The products of each element."""
        p, g = lanes.direction, lanes.incoming
        return {"along": ("sum", (p.conj() * g).real), "square": ("sum", (p.conj() * p).real)}

    def observe(self, numbers: Any, state: Any, executor: Any) -> Any:
        """The sums over all leaves."""
        return tuple(jnp.sum(stacked(numbers[name])) if numbers else jnp.zeros(()) for name in ("along", "square"))


class swats(Wrapper[SwatsState]):
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

    conditions = {"": "before the switch"}

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
        object.__setattr__(self, "min_steps", step_number("swats", "min_steps", self.min_steps, 1))
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
    def _projected(self) -> Chain:
        """Adam, of whose steps the projection on the gradient is taken."""
        return chain(self._adam, projection())

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
        return SwatsState(zero(), jnp.full((), -1, jnp.int32), average, rate, inner)

    @property
    def takes_flag(self) -> bool:
        """True: each of its phases has a condition of its own. Of conditions in conditions XLA copies the arrays."""
        return True

    def run(
        self, updates: Any, state: SwatsState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, SwatsState]:
        """One step of Adam or of SGD; ``params`` and the extra arguments are not read."""
        return self.run_when(True, updates, state, params, extra, apply_updates)

    @puts_constants
    def run_when(
        self, when: Any, updates: Any, state: SwatsState, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, SwatsState]:
        """``run`` where a flag is true."""
        state = checked_state(self.label, state, SwatsState, "count", "switched_at")
        check_types(self.label)
        for field in ("average", "sgd_rate"):
            check_kind(field, getattr(state, field), "floating", shape=(), who=self.label)

        before, switched = both(when, ~state.switched), both(when, state.switched)
        begins = both(when, state.count == state.switched_at)
        if apply_updates:
            params, held = self._adam_step(updates, state, params, True, before)
            held = self._begun(begins, held)
            after, held = self._sgd_step(updates, held, params, True, switched)
        else:
            adam = Once(lambda grads: self._adam_step(grads, state, params, False, True), updates)
            after, held = either(before, adam, lambda: (not_yet(switched, adam, params, False), state))
            held = self._begun(begins, held)
            sgd = Once(lambda grads: self._sgd_step(grads, held, params, False, True), updates)
            after, held = either(switched, sgd, lambda: (after, held))
        return after, held._replace(count=kept(when, incremented(state.count), state.count))

    def _adam_step(
        self, updates: Any, state: SwatsState, params: Any, apply_updates: bool, when: Any
    ) -> tuple[Any, SwatsState]:
        """A step of Adam, and what it says of SGD, where a flag is true."""
        slots = state.inner.slots | {"projection": {"state": projection().init_tree(None)}}
        inner = state.inner._replace(slots=slots)
        out, inner = run_inside(self._projected, updates, inner, params, {}, apply_updates, when=when)
        slots = dict(inner.slots)
        products = slots.pop("projection")["state"]
        after = self._estimated(state._replace(inner=inner._replace(slots=slots)), *products)
        return out, _with_numbers(after, when, state)

    def _estimated(self, state: SwatsState, along: jax.Array, square: jax.Array) -> SwatsState:
        """The state after a step p of Adam, with its γ averaged in, and the switch if it is time.

        Args:
            state: with Adam's state after the step.
            along: p·g.
            square: p·p.
        """
        h, k = state.inner.hyperparams, incremented(state.count)
        alpha, b2, eps = _learning_rate(state.inner), h["rms"]["decay"], h["precondition"]["eps"]
        along = -along.astype(alpha.dtype)
        ratio = safe_divide(safe_divide(square.astype(alpha.dtype), along), alpha)
        usable = (along != 0) & jnp.isfinite(ratio)
        average = jnp.where(usable, mix(b2, complement(h["rms"], "decay"), state.average, ratio), state.average)
        estimate = _debiased(average, state.inner)
        gap = jnp.abs(estimate - ratio)
        close = jnp.abs(alpha) * gap < eps if self.rtol is None else gap < self.rtol * jnp.abs(estimate)
        done = usable & close & (k > 1) & (k >= self.min_steps)
        if self.positive:
            done &= alpha * estimate > 0
        switched_at = jnp.where(done, incremented(state.count), state.switched_at)
        return state._replace(switched_at=switched_at, average=average, sgd_rate=alpha * estimate)

    def _sgd_step(
        self, grads: Any, state: SwatsState, params: Any, apply_updates: bool, when: Any
    ) -> tuple[Any, SwatsState]:
        """A step of ``momentum_sgd`` with learning rate Λ, on the m of Adam's state, where a flag is true."""
        inner, ratio = state.inner, _debiased(state.average, state.inner)
        sgd = self._sgd_state(inner, ratio)
        steps, after = run_inside(self._sgd, grads, sgd, params, {}, apply_updates, when=when)
        hyperparams = {name: after.hyperparams.get(name, own) for name, own in inner.hyperparams.items()}
        inner = inner._replace(count=after.count, hyperparams=hyperparams, slots=inner.slots | after.slots)
        return steps, _with_numbers(state._replace(sgd_rate=_learning_rate(inner) * ratio, inner=inner), when, state)

    def _begun(self, begins: Any, state: SwatsState) -> SwatsState:
        """The state with which SGD goes on, or with which it starts."""
        names = self._sgd_state(state.inner, state.average).slots
        slots = either(
            begins,
            lambda: {name: self._handed_over(state).inner.slots[name] for name in names},
            lambda: {name: state.inner.slots[name] for name in names},
        )
        # A count that has ended where int32 does is not to begin again.
        switched_at = jnp.where(begins, jnp.minimum(state.switched_at, _LAST - 1), state.switched_at)
        return state._replace(switched_at=switched_at, inner=state.inner._replace(slots=state.inner.slots | slots))

    def _sgd_state(self, inner: ChainState, ratio: jax.Array) -> ChainState:
        """The state of SGD: the hyperparameters and the first moment of Adam's."""
        hyperparams = {name: own for name, own in inner.hyperparams.items() if name in self._sgd.names}
        return ChainState(
            inner.count, hyperparams | {"scale": {"factor": ratio}}, {"momentum": inner.slots["momentum"]}
        )

    def _handed_over(self, state: SwatsState) -> SwatsState:
        """The state that SGD starts with."""
        sgd = self._sgd_state(state.inner, _debiased(state.average, state.inner))
        if self.carry == "reset":
            slots = jax.tree.map(jnp.zeros_like, sgd.slots)
        else:
            slots = handover.written(self._sgd, sgd, handover.read(self._adam, state.inner)).slots
        return state._replace(inner=state.inner._replace(slots=state.inner.slots | slots))


def _with_numbers(after: SwatsState, when: Any, before: SwatsState) -> SwatsState:
    """The state after a step whose own numbers are those before it, where a flag is false."""
    names = ("switched_at", "average", "sgd_rate")
    own = kept(when, [getattr(after, name) for name in names], [getattr(before, name) for name in names])
    return after._replace(**dict(zip(names, own, strict=True)))


def _learning_rate(state: ChainState) -> jax.Array:
    return state.hyperparams["scale_by_learning_rate"]["learning_rate"]


def _debiased(average: jax.Array, adam: ChainState) -> jax.Array:
    """λ/(1 − b2ᵏ): rms carries that weight, and does not cancel in doing so."""
    return safe_divide(average, adam.slots["rms"]["weight"])


def _tolerance(rtol: Any) -> float:
    tolerance = number("swats", "rtol", rtol, " or None", infinite=True)
    if tolerance <= 0:
        raise ValueError(f"swats: rtol must be above 0, or None for the paper's tolerance, found {rtol!r}")
    return tolerance
