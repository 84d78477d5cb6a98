"""Rules that find the length of steps by themselves: from norms of gradients, and from the way gone so far."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.contract import Terms
from gradtx._core.limits import check_choice, integer
from gradtx._core.numerics import (
    abs_sq,
    fade,
    mix,
    norm_of_norms,
    norms,
    real_dtype,
    real_product,
    safe_divide,
    safe_sqrt,
    stacked,
    widest,
)
from gradtx._engine.inside import Inside
from gradtx._engine.transformation import Transformation
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = [
    "at_learned_rate",
    "in_units_of_distance",
    "scale_by_distance",
    "scale_by_distance_bound",
    "scale_by_gradient_norm",
]


def width(tree: Any) -> Any:
    """The dtype for numbers that are taken over a whole tree: the widest real one of its leaves, float32 at least."""
    return widest(*(real_dtype(x.dtype) for x in jax.tree.leaves(tree)))


class scale_by_gradient_norm(Rule):
    r"""Divide by past norms of the gradient: u ← u/(√(s + ε_r) + ε), with one s for each leaf, or one for all.

    ::

        s ← s + ‖g‖²;   or with a decay, from the first norm on:   s ← βs + (1−β)‖g‖²,  s₁ = ‖g₁‖²

    So elements of a leaf keep their proportions, as they do in SGD: AdaGrad-Norm, and with a decay NovoGrad's divisor.

    Args:
        decay: β in [0, 1); None, the default: the sum of all.
        eps: ε ≥ 0, outside the root. 0.
        eps_root: ε_r ≥ 0, inside the root. 0.
        over: "leaf": each leaf by its own norms; "tree": all leaves by the norm over all of them.

    State: ``state``, s: a tree with one number for each leaf, or one number. A direction whose divisor is 0 becomes 0.

    Inf and NaN: one of them in a leaf (or in any, over the tree) makes it NaN or 0 as a whole, from then on.

    Source: Ward, Wu & Bottou (2019), "AdaGrad stepsizes: sharp convergence over nonconvex landscapes"; Ginsburg et al.
    (2019), "Stochastic gradient methods with layer-wise adaptive moments for training of deep networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale_by_gradient_norm()
    >>> updates, state = tx.update(jnp.array([3.0, 0.0]), tx.init(jnp.zeros(2)))
    >>> updates, state = tx.update(jnp.array([0.0, 4.0]), state)
    >>> print(updates)
    [0.  0.8]
    """

    equation = r"s \leftarrow s + \lVert g\rVert^2, \quad u \leftarrow u / (\sqrt{s + \epsilon_r} + \epsilon)"
    maps_trees = True
    scales = True
    pure = True
    normalizes = True
    accumulates = True
    reads = ("gradient",)
    takes_factors = True
    nonnegative = ("state",)

    decay: Hyper | None = hyper(default=None, low=0, below=1)
    eps: Hyper = hyper(default=0.0, low=0)
    eps_root: Hyper = hyper(default=0.0, low=0)
    over: str = dataclasses.field(default="leaf", kw_only=True)

    @property
    def scope(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on over
        return self.over

    def __post_init__(self):
        super().__post_init__()
        check_choice(self.label, "over", self.over, ("leaf", "tree"))

    def init_tree(self, params: Any) -> Any:
        if self.over == "tree":
            return jnp.zeros((), width(params))
        return jax.tree.map(lambda p: jnp.zeros((), real_dtype(p.dtype)), params)

    def terms(self, lanes) -> Terms:
        return {"length": ("norm", lanes.gradient)}

    def apply_tree(self, trees, state):
        treedef, lengths = jax.tree.structure(trees.gradient), trees.numbers["length"]
        before = [state] if self.over == "tree" else treedef.flatten_up_to(state)
        if trees.factors is not None:
            factors = stacked([x.astype(state.dtype) for x in jax.tree.leaves(trees.factors)])
            lengths = stacked(lengths).astype(state.dtype) * factors
        each = [norm_of_norms(stacked(lengths))] if self.over == "tree" else lengths
        after = [self._after(trees, s, length.astype(s.dtype)) for s, length in zip(before, each, strict=True)]

        def factor(s: jax.Array) -> jax.Array:
            c = trees.scalars(s.dtype)
            return safe_divide(jnp.ones_like(s), safe_sqrt(s + c.eps_root) + c.eps)

        if self.over == "tree":
            return factor(after[0]), after[0]
        return treedef.unflatten(map(factor, after)), treedef.unflatten(after)

    def _after(self, trees: Any, s: jax.Array, norm: jax.Array) -> jax.Array:
        if self.decay is None:
            return s + abs_sq(norm)
        c, square = trees.scalars(s.dtype), abs_sq(norm)
        return jnp.where(trees.count == 0, square, mix(c.decay, c.decay_complement, s, square))


class scale_by_distance(Rule):
    r"""Multiply by the greatest distance from the start so far: u ← r̄u, r̄ ← max(r̄, ‖p − p₀‖).

    The norm is that over all leaves. After ``scale_by_gradient_norm(over="tree")`` that is DoG, which needs no learning
    rate; around it, as u ← r̄·tx(r̄u), it is DoWG. Needs ``params`` in ``update``.

    Args:
        initial: r > 0, the distance at the start: far below that to the minimum. 1e-6, times 1 + ‖p₀‖.
        relative: whether ``initial`` is in units of 1 + ‖p₀‖; True, as DoG's authors advise.
        tx: a rule or chain that multiplies all leaves by one number that follows from the gradient, as that norm does.
            None, the default, for r̄u.

    State: ``state``, a dict of ``start``, p₀, like the parameters; ``largest``, r̄; ``unit``, 1 or 1 + ‖p₀‖; and
    ``inner``, the state of tx, if there is one.

    Inf and NaN: one of them in a parameter makes r̄ inf or NaN, for all leaves and from then on; those in u stay in
    their element, but for what tx does.

    Raises:
        TypeError: for another ``tx``.

    Source: Ivgi, Hinder & Carmon (2023), "DoG is SGD's best friend: a parameter-free dynamic step size schedule";
    Khaled, Mishchenko & Jin (2023), "DoWG unleashed: an efficient universal parameter-free gradient descent method".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.scale_by_distance(0.5, relative=False), jnp.array([0.0, 0.0])
    >>> g, state = jnp.array([1.0, -1.0]), tx.init(p)
    >>> updates, state = tx.update(g, state, p)
    >>> print(updates, tx.update(g, state, p + jnp.array([3.0, 4.0]))[0])
    [ 0.5 -0.5] [ 5. -5.]
    """

    equation = r"\bar{r} \leftarrow \max(\bar{r}, \lVert p - p_0\rVert), \quad u \leftarrow \bar{r} u"
    maps_trees = True
    scales = True
    nonnegative = ("state/largest", "state/unit")
    needs_params = True
    scope = "tree"

    @property
    def pure(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return self.tx is None or Inside(self.tx).is_pure

    @property
    def accumulates(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return self.tx is not None and any(rule.accumulates for rule in self.tx.rules)

    @property
    def normalizes(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return self.tx is not None and any(rule.normalizes for rule in self.tx.rules)

    @property
    def takes_factors(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return self.tx is not None

    @property
    def reads(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return ("param",) if self.tx is None else ("gradient", "param")

    initial: Hyper = hyper(default=1e-6, low=0)
    relative: bool = dataclasses.field(default=True, kw_only=True)
    tx: Transformation[Any] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.tx is not None and not (isinstance(self.tx, Transformation) and Inside(self.tx).multiplies):
            raise TypeError(
                f"{self.label}: tx must multiply all leaves by one number that follows from the gradient, as "
                f"scale_by_gradient_norm(over='tree') does, found {self.tx!r}: put {self.label} before and behind it"
            )

    def init_tree(self, params: Any) -> dict[str, Any]:
        one = jnp.ones((), width(params))
        unit = one + norms([jax.tree.leaves(params)])[0].astype(one.dtype) if self.relative else one
        inner = {} if self.tx is None else {"inner": self.tx.init(params)}
        return {"start": params, "largest": 0 * one, "unit": unit, **inner}

    def lanes_in(self, state):
        return {"start": state["start"]}

    def terms(self, lanes) -> Terms:
        inner = {} if self.tx is None else Inside(self.tx).terms(lanes)
        return {"way": ("norm", lanes.param - lanes.start.astype(lanes.param.dtype)), **inner}

    def apply_tree(self, trees, state):
        unit = state["unit"]
        way = norm_of_norms(stacked(trees.numbers["way"])).astype(unit.dtype)
        gone = jnp.maximum(way, trees.scalars(unit.dtype).initial * unit)
        largest = jnp.maximum(state["largest"], gone)
        if self.tx is None:
            return largest, state | {"largest": largest}
        factor, inner = Inside(self.tx).factor(trees, state["inner"], largest)
        return factor * largest, state | {"largest": largest, "inner": inner}


class scale_by_distance_bound(Rule):
    r"""Multiply by a lower bound of the distance to the minimum, which is found on the way: u ← γdu. D-Adaptation.

    With v the second moment, γ a learning rate and b the decay of both averages::

        r ← br + (1−b)γd·⟨g, s/(√v + ε)⟩;   s ← bs + (1−b)γd·g;   d ← max(d, r/((1−b)‖s‖₁))

    with the s and the d of before on the right, over all leaves. It stands between the averages of Adam, which then
    needs no learning rate, and is not debiased::

        chain(rms(0.999), scale_by_distance_bound(), momentum(0.9), precondition(1e-8), scale(-1.0))

    The bound is proven for sums; with averages, as here, d may exceed the distance. What the momentum holds has the d
    of its day. ``in_units_of_distance`` is its successor, Prodigy.

    Args:
        learning_rate: γ, a schedule that ends at 0, say. 1: there is nothing to tune.
        initial: d₀ > 0, below the distance. 1e-6 as its authors take.
        decay: b in [0, 1). 0.9995, the root of Adam's β₂, as in the paper.
        eps: ε ≥ 0, that of ``precondition``. 1e-8.
        lagged: whether v is that of before the gradient, as its authors' package has it. False, as in the paper.

    State: ``state``, a dict of ``sum``, s, like the parameters; ``distance``, d; ``along``, r; and ``before``, the v of
    before, if it is lagged.

    Inf and NaN: one of them in a gradient spoils the bound, for all leaves and from then on.

    Source: Defazio & Mishchenko (2023), "Learning-rate-free learning by D-Adaptation", Algorithm 4.

    >>> import gradtx, jax.numpy as jnp
    >>> units = gradtx.chain(gradtx.rms(0.999), gradtx.scale_by_distance_bound())
    >>> tx = gradtx.chain(units, gradtx.momentum(0.9), gradtx.precondition(), gradtx.scale(-1.0))
    >>> p = jnp.array([10.0])
    >>> state = tx.init(p)
    >>> for _ in range(100):
    ...     p, state = gradtx.step(tx, p, 2 * p, state)
    >>> print(abs(p) < 0.1)
    [ True]
    """

    equation = (
        r"d \leftarrow \max(d, \frac{r}{(1-b) \lVert s\rVert_1}), \quad "
        r"r \leftarrow b r + (1-b) \gamma d \langle g, \frac{s_{t-1}}{\sqrt{v} + \epsilon}\rangle, \quad "
        r"s \leftarrow b s + (1-b) \gamma d g, \quad u \leftarrow \gamma d u"
    )
    maps_trees = True
    scales = True
    nonnegative = ("state/distance",)
    pure = True
    accumulates = True
    second_moment = "edits"
    scope = "tree"
    reads = ("gradient", "second_moment")

    learning_rate: Hyper = hyper(default=1.0)
    initial: Hyper = hyper(default=1e-6, above=0)
    decay: Hyper = hyper(default=0.999**0.5, low=0, below=1)
    eps: Hyper = hyper(default=1e-8, low=0)
    lagged: bool = dataclasses.field(default=False, kw_only=True)

    def init_tree(self, params: Any) -> dict[str, Any]:
        zero = jnp.zeros((), width(params))
        before = {"before": jax.tree.map(lambda p: jnp.zeros_like(p.real), params)} if self.lagged else {}
        sums = jax.tree.map(jnp.zeros_like, params)
        return {"sum": sums, "distance": zero, "along": jnp.zeros_like(zero), **before}

    def apply_tree(self, trees, state):
        c = trees.scalars(state["distance"].dtype)
        d = jnp.maximum(state["distance"], c.initial)
        rate = c.learning_rate * d

        columns = [state["sum"], trees.gradient, trees.second_moment, *([state["before"]] if self.lagged else [])]
        scalars = [rate, c.decay, c.decay_complement, c.eps]
        bounded, in_place = (_bounded_late, {0: 0, 3: 1}) if self.lagged else (_bounded, {0: 0})
        (sums, *before), (gains, lengths) = trees.mapped(bounded, columns, scalars, in_place, ["sum", "sum"])
        along = mix(c.decay, c.decay_complement, state["along"], rate * jnp.sum(gains).astype(d.dtype))
        bound = safe_divide(along, c.decay_complement * jnp.sum(lengths).astype(d.dtype))
        after = {"sum": sums, "distance": jnp.maximum(d, bound), "along": along}
        return rate, after | dict(zip(["before"], before, strict=False))


class _AroundChain(Rule):
    """A rule with a chain in it and the parameters of the start in its state: one pass, if the chain is elementwise."""

    maps_trees = True
    accumulates = True
    needs_params = True

    @property
    def scales(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return Inside(self.tx).fits

    @property
    def pure(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return self.scales and Inside(self.tx).is_pure

    @property
    def scope(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return "tree" if self.scales else None

    @property
    def reads(self):  # pyright: ignore[reportIncompatibleVariableOverride] - as that
        return ("direction", "param") if self.scales else Rule.reads

    tx: Transformation[Any]

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.tx, Transformation):
            raise TypeError(f"{self.label}: tx must be a gradtx chain or rule, found {self.tx!r}")

    def slots_in(self, state):
        return Inside(self.tx).slots(state["inner"])

    def with_slots(self, state, slots):
        return state | {"inner": Inside(self.tx).with_slots(state["inner"], slots)}


class in_units_of_distance(_AroundChain):
    r"""A chain in units of the distance to the minimum, which is estimated on the way: u ← d·tx(d·g).

    A chain whose direction has length 1 or so, as Adam's, then needs no learning rate: that is Prodigy. With weights
    a = γd²/d₀ of the steps, w the parameters and b the decay of both sums::

        r ← br + a·⟨g, w₀ − w⟩;   s ← bs + a·g;   d ← max(d, c·r/‖s‖₁)

    The gradient goes in, and the direction comes out, times the d of before; every ε of the chain is one in units of
    the new d. Needs ``params`` in ``update``.

    Args:
        tx: a gradtx chain or rule.
        learning_rate: γ, the factor of the learning rate that follows; 1. It matters only where it changes.
        initial: d₀ > 0, an estimate far below the distance. 1e-6 as its authors take.
        decay: b in [0, 1). 0.9995, the root of Adam's β₂, as in the paper.
        coefficient: c > 0 of the estimate. 1; 0.5 or 2 for smaller or larger steps.
        weighted: whether γ is among the weights of s. False gives steps in a warm-up less weight
            (``safeguard_warmup`` of its authors).

    State: ``state``, a dict of ``inner``, the state of the chain; ``start``, w₀, and ``sum``, s, like the parameters;
    ``distance``, d; and ``along``, r.

    Inf and NaN: one of them in a gradient or parameter spoils the estimate, for all leaves and from then on.

    Raises:
        TypeError: for a ``tx`` that is no chain or rule of gradtx.
        ValueError: for a ``tx`` with a schedule of ε.

    Source: Mishchenko & Defazio (2023), "Prodigy: an expeditiously adaptive parameter-free learner", Algorithm 4.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.chain(gradtx.in_units_of_distance(gradtx.sign()), gradtx.scale(-1.0)), jnp.array([10.0])
    >>> state = tx.init(p)
    >>> for _ in range(60):
    ...     p, state = gradtx.step(tx, p, 2 * p, state)
    >>> print(state.slots["in_units_of_distance"]["state"]["distance"].round(2) < 10)
    True
    """

    equation = (
        r"d \leftarrow \max(d, c \, r / \lVert s\rVert_1), \quad r \leftarrow b r + a \langle g, w_0 - w\rangle, \quad "
        r"s \leftarrow b s + a g, \quad u \leftarrow d \, \mathrm{tx}(d g)"
    )
    nonnegative = ("state/distance",)

    learning_rate: Hyper = hyper(default=1.0)
    initial: Hyper = hyper(default=1e-6, above=0)
    decay: Hyper = hyper(default=0.999**0.5, low=0, below=1)
    coefficient: Hyper = hyper(default=1.0, low=0)
    weighted: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if any(callable(rule.hyperparameters().get("eps")) for rule in self.tx.rules):
            raise ValueError(
                "in_units_of_distance: eps must be a number and no schedule, since it is multiplied by the distance"
            )

    def init_tree(self, params: Any) -> dict[str, Any]:
        zero = jnp.zeros((), width(params))
        sums = jax.tree.map(jnp.zeros_like, params)
        inner = self.tx.init(params)
        return {"inner": inner, "start": params, "sum": sums, "distance": zero, "along": jnp.zeros_like(zero)}

    def apply_tree(self, trees, state):
        c = trees.scalars(state["distance"].dtype)
        d = jnp.maximum(state["distance"], c.initial)
        weight = d * d / c.initial
        rate = weight * c.learning_rate
        columns = [state["sum"], trees.direction, state["start"], trees.params]
        scalars = [rate if self.weighted else weight, c.decay, c.decay_complement]
        (sums,), (gains, lengths) = trees.mapped(_estimated, columns, scalars, {0: 0}, ["sum", "sum"])
        along = fade(c.decay, c.decay_complement, state["along"], rate * jnp.sum(gains).astype(d.dtype))
        after = jnp.maximum(d, c.coefficient * safe_divide(along, jnp.sum(lengths).astype(d.dtype)))
        estimate = {"start": state["start"], "sum": sums, "distance": after, "along": along}

        known = _with_eps(state["inner"], lambda eps: after.astype(eps.dtype) * eps)
        if self.scales:
            result, inner = Inside(self.tx).ticked(trees, known)
            result["distance"] = d
        else:
            result, inner = self.tx.update(_times(d, trees.direction), known, trees.params, **trees.extra)
            result = _times(d, result)
        inner = _with_eps(inner, lambda eps, before: before, state["inner"])
        return result, {"inner": inner, **estimate}

    def apply(self, signal, slots, param, c):
        u, after = Inside(self.tx).applied(c.distance * signal.direction, vars(slots), param, vars(c))
        return signal._replace(direction=c.distance * u), after


def _times(d: jax.Array, tree: Any) -> Any:
    return jax.tree.map(lambda x: d.astype(real_dtype(x.dtype)) * x, tree)


def _bounded(
    s: jax.Array, g: jax.Array, v: jax.Array, rate: jax.Array, decay: jax.Array, complement: jax.Array, eps: jax.Array
) -> tuple[jax.Array, ...]:
    """The sum after a step of D-Adaptation, what it gained, and the absolute value of the sum."""
    rate, decay, complement, eps = (x.astype(real_dtype(s.dtype)) for x in (rate, decay, complement, eps))
    after = mix(decay, complement, s, rate * g.astype(s.dtype))
    return after, real_product(g, safe_divide(s, safe_sqrt(v.astype(eps.dtype)) + eps)), jnp.abs(after)


def _bounded_late(
    s: jax.Array, g: jax.Array, v: jax.Array, before: jax.Array, *scalars: jax.Array
) -> tuple[jax.Array, ...]:
    """The same by the v of before the gradient, and with the v for the next step."""
    after, gain, length = _bounded(s, g, before, *scalars)
    return after, v.astype(before.dtype), gain, length


def _estimated(
    s: jax.Array,
    u: jax.Array,
    start: jax.Array,
    p: jax.Array,
    weight: jax.Array,
    decay: jax.Array,
    complement: jax.Array,
) -> tuple[jax.Array, ...]:
    """The sum after a step of Prodigy, what it gained, and the absolute value of the sum."""
    weight, decay, complement = (x.astype(real_dtype(s.dtype)) for x in (weight, decay, complement))
    after = fade(decay, complement, s, weight * u.astype(s.dtype))
    return after, real_product(u, start.astype(p.dtype) - p), jnp.abs(after)


class at_learned_rate(_AroundChain):
    r"""An optimizer whose steps are all made longer by one factor, that is learned on the way: w ← w₀ + s·Σu. Mechanic.

    How much the loss would have fallen with longer steps is ⟨g, Δ⟩, with Δ = (w₀ − w)/s the way so far at a rate of 1.
    Several betters with decays β = 0.9, 0.99, ... bet on it, and s is the sum of what each of them says::

        h = ⟨g + λs‖g‖/‖w‖·w, Δ⟩;   m ← max(βm, |h| + ε);   v ← β²v + h²
        r ← βr + clip(h, ±m₋)·s₋;   s ← (m·s₀/n + max(r, 0))/(√v + ε);   Δ ← Δ − u

    with u the update of the optimizer, negative as a step downhill is; m₋ and s₋ are those of before. It stands at the
    end of a chain, and gives the update itself. The optimizer has a learning rate of 1, or a schedule that ends so.
    Needs ``params`` in ``update``.

    Args:
        tx: an optimizer of gradtx, a chain or a rule, its learning rate included.
        weight_decay: λ ≥ 0, which pulls s down and does nothing else. 0.01 as its authors take.
        eps: ε > 0. 1e-8.
        initial: s₀ > 0, of each better at the start. 1e-6 as its authors take.
        betters: n, at least 1. 6, with decays to 0.999999.

    State: ``state``, a dict of ``inner``, the state of the optimizer; ``start``, w₀, like the parameters; and ``most``,
    ``square``, ``gain`` and ``factor``, m, v, r and s, of n numbers each.

    Inf and NaN: one of them in a gradient or parameter spoils the factors, for all leaves and from then on.

    Raises:
        TypeError: for a ``tx`` that is no chain or rule of gradtx, and for a number of betters that is no integer.
        ValueError: for fewer than one of these.

    Source: Cutkosky, Defazio & Mehta (2023), "Mechanic: a learning rate tuner"; the clip is its authors' later one.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, p = gradtx.at_learned_rate(gradtx.sgd(1.0)), jnp.array([10.0])
    >>> state = tx.init(p)
    >>> for _ in range(100):
    ...     p, state = gradtx.step(tx, p, 2 * p, state)
    >>> print(abs(p) < 1)
    [ True]
    """

    equation = (
        r"\Delta \leftarrow \Delta - \mathrm{tx}(g), \quad s \leftarrow \sum_i \frac{m_i s_0 / n + \max(r_i, 0)}"
        r"{\sqrt{v_i} + \epsilon}, \quad u \leftarrow w_0 - s \Delta - w"
    )
    nonnegative = ("state/most", "state/square", "state/factor")

    weight_decay: Hyper = hyper(default=1e-2, low=0)
    eps: Hyper = hyper(default=1e-8, above=0)
    initial: Hyper = hyper(default=1e-6, above=0)
    betters: int = dataclasses.field(default=6, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        integer(self.label, "betters", self.betters, 1)

    def init_tree(self, params: Any) -> dict[str, Any]:
        numbers = {name: jnp.zeros(self.betters, width(params)) for name in ("most", "square", "gain", "factor")}
        return {"inner": self.tx.init(params), "start": params, **numbers}

    def apply_tree(self, trees, state):
        c = trees.scalars(state["factor"].dtype)
        before = jnp.where(trees.count == 0, c.initial, state["factor"])
        divisor = jnp.sum(before) + c.eps
        numbers = self._bets(trees, state, divisor, before)
        factor = jnp.sum(numbers["factor"])
        if self.scales:
            result, inner = Inside(self.tx).ticked(trees, state["inner"])
            result |= {"factor": factor, "divisor": divisor}
        else:
            updates, inner = self.tx.update(trees.direction, state["inner"], trees.params, **trees.extra)
            result = jax.tree.map(
                lambda start, p, u: _at_rate(factor, divisor, start, p, u.astype(p.dtype)),
                state["start"],
                trees.params,
                updates,
            )
        return result, {"inner": inner, "start": state["start"], **numbers}

    def apply(self, signal, slots, param, c):
        u, after = Inside(self.tx).applied(signal.direction, vars(slots), param, vars(c))
        update = _at_rate(c.factor, c.divisor, slots.start, param, u)
        return signal._replace(direction=update), {"start": slots.start, **after}

    def slots_in(self, state):
        return {"start": state["start"], **super().slots_in(state)}

    def _bets(self, trees: Any, state: Any, divisor: jax.Array, s: jax.Array) -> dict[str, jax.Array]:
        """Each better's numbers after the step; s is what they said before it."""
        c, n = trees.scalars(s.dtype), self.betters
        columns, reduces = [trees.direction, trees.params, state["start"]], ["sum", "sum", "norm", "norm"]
        _, (*sums, gradients, weights) = trees.mapped(_gained, columns, [divisor], reduces=reduces)
        gain, drift = (jnp.sum(x).astype(s.dtype) for x in sums)
        lengths = [norm_of_norms(x).astype(s.dtype) for x in (gradients, weights)]
        h = gain + c.weight_decay * jnp.sum(s) * lengths[0] / (lengths[1] + c.eps) * drift
        decay = 1 - 0.1 ** jnp.arange(1, n + 1, dtype=s.dtype)
        most = jnp.maximum(decay * state["most"], jnp.abs(h) + c.eps)
        square = decay**2 * state["square"] + abs_sq(h)
        gain = decay * state["gain"] + jnp.clip(h, -state["most"], state["most"]) * s
        factor = (c.initial / n * most + jnp.maximum(gain, 0)) / (safe_sqrt(square) + c.eps)
        return {"most": most, "square": square, "gain": gain, "factor": factor}


def _way_at_one(divisor: jax.Array, start: jax.Array, p: jax.Array) -> jax.Array:
    """The way so far at a rate of 1."""
    return (start.astype(p.dtype) - p) / divisor.astype(real_dtype(p.dtype))


def _at_rate(factor: jax.Array, divisor: jax.Array, start: jax.Array, p: jax.Array, u: jax.Array) -> jax.Array:
    """The update to the point that is ``factor`` of all updates away from the start."""
    way = _way_at_one(divisor, start, p) - u
    return start.astype(p.dtype) - factor.astype(real_dtype(p.dtype)) * way - p


def _gained(g: jax.Array, p: jax.Array, start: jax.Array, divisor: jax.Array) -> tuple[jax.Array, ...]:
    """The gain along the way, the weights along it, and what norms are taken of."""
    way = _way_at_one(divisor, start, p)
    return real_product(g, way), real_product(p, way), g, p


def _with_eps(state: Any, change: Any, *others: Any) -> Any:
    """The state of a chain with every ε in it changed."""
    hyperparams = {
        rule: {
            name: change(value, *(other.hyperparams[rule][name] for other in others)) if name == "eps" else value
            for name, value in values.items()
        }
        for rule, values in state.hyperparams.items()
    }
    return state._replace(hyperparams=hyperparams)
