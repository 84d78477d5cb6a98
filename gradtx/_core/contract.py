"""The contract of a rule: what it says about one array and, once per step, about its scalars.

A rule knows nothing of trees, devices, dtypes of storage or other rules. Executors know all that, and no rule by
name: they ask a rule only what is declared here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from gradtx._core.limits import Limits
from gradtx._core.numerics import Numbers, SumOver, complement, real_dtype, stacked
from gradtx._core.signal import Signal, Weights

Total = SumOver
"""The sums of a function over all elements of arrays, in ``measure``."""


Named = SimpleNamespace
"""Values by their names, as attributes: what a rule reads its hyperparameters, coefficients and slots from."""


class Hyperparameters(Named):
    """The hyperparameters of this step; and, where they are data, those of the next step that rules ask for."""

    __slots__ = ("ahead",)

    ahead: Mapping[str, jax.Array]


Arrays = dict[str, jax.Array]
"""Arrays by their names, as a dict: what a rule returns its slots and coefficients in."""


Terms = dict[str, tuple[Literal["sum", "norm"], jax.Array]]
"""Elementwise functions of a leaf's lanes by their names, each with what is taken of it over the leaf."""


class MomentKind(enum.StrEnum):
    """The kinds of moments of the gradient that a slot may hold, by the words that ``holds`` takes."""

    AVERAGE = "average"
    """The average of directions, which the direction is made of from there on; its weight is 1 in the end."""

    TRACE = "trace"
    """The same for a sum in which what is old fades, as heavy ball's."""

    SQUARE = "square"
    """The average of the squared moduli."""

    CENTER = "center"
    """The average that ``VARIANCE`` is about."""

    VARIANCE = "variance"
    """The average of the squared moduli less the squared modulus of the average."""

    SUM = "sum"
    """The sum of the squared moduli."""

    MAXIMUM = "maximum"
    """The largest second moment so far."""


FIRST_MOMENTS = (MomentKind.AVERAGE, MomentKind.TRACE)
"""The kinds that a direction is made of."""


class Tick(NamedTuple):
    """The result of ``tick``: scalars that a rule computes once per step.

    Attributes:
        coefficients: named scalars for ``apply``; every leaf gets the same.
        scalars: the rule's scalar slots after this step.
        weights: the weights of the averages after this rule.
    """

    coefficients: Arrays
    scalars: Arrays
    weights: Weights


class Trees(NamedTuple):
    """The trees of a step that a rule of whole trees sees, in the dtype of arithmetic; None for leaves it is not for.

    Attributes:
        incoming: the updates as they came into the chain.
        gradient: the gradient lane.
        direction: the direction lane.
        params: the parameters, or None if there are none.
        extra: the extra arguments of ``update``.
        count: steps taken before this one.
        executor: how the step runs over many leaves: it sums functions of them, and maps functions over them.
        coefficients: this step's scalars by name, from ``tick``; ``scalars`` casts them.
        second_moment: the second moment, for a rule that declares ``second_moment`` as "edits" or "uses"; else None.
        factors: what the gradient is still to be multiplied by, a tree of one number for each leaf; None: nothing.
        numbers: of each of the ``terms`` of a rule that scales one number for each leaf, as a list or a vector.
    """

    incoming: Any
    gradient: Any
    direction: Any
    params: Any
    extra: dict[str, Any]
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, as states do
    executor: Any
    coefficients: Arrays
    second_moment: Any = None
    factors: Any = None
    numbers: Any = None

    def mapped(
        self,
        fn: Callable[..., tuple[jax.Array, ...]],
        columns: Sequence[Any],
        scalars: Sequence[jax.Array] = (),
        in_place: Mapping[int, int] = MappingProxyType({}),
        reduces: Sequence[str] = (),
    ) -> tuple[list[Any], list[jax.Array]]:
        """The trees that an elementwise function makes of trees, in one pass, and numbers of its last results.

        Of each number there is a vector, with one for each leaf. The scalars come last; ``in_place`` and ``reduces``
        are as in ``map_leaves``.
        """
        treedef = jax.tree.structure(columns[0])
        rows = list(zip(*map(jax.tree.leaves, columns), strict=True))
        results, numbers = self.executor.map_leaves(fn, rows, scalars, [], in_place, reduces)
        return [treedef.unflatten(column) for column in zip(*results, strict=True)], [*map(stacked, numbers)]

    def scalars(self, dtype: Any) -> Named:
        """The coefficients of this step in the dtype of a leaf, or in its real counterpart."""
        return Named(**{name: value.astype(real_dtype(dtype)) for name, value in self.coefficients.items()})


class AbstractRule:
    """The contract of a rule. The defaults are those of the identity.

    A rule overrides ``apply`` and, where it needs them, ``slots``, ``scalars``, ``tick``, ``measure`` and
    ``settle``; the class attributes declare what the chain has to know to put it in its place.
    """

    equation: ClassVar[str] = ""
    """The effect of the rule, in LaTeX."""

    accumulates: ClassVar[bool | None] = None
    """True of a rule that averages or sums gradients. From the first such rule on, the gradient lane stays as it is.

    A rule whose direction or second moment depends on its slots has to say True or False."""

    filters: ClassVar[bool] = False
    """Edits the gradient that the accumulators after it read, though others before it have read another."""

    second_moment: ClassVar[Literal["makes", "edits", "uses"] | None] = None
    """One of "makes" (as ``rms`` does), "edits" (``max_v``), "uses" (``precondition``), or None.

    One that maps whole trees reads it, and leaves it as it is ("edits") or uses it up."""

    last: ClassVar[bool] = False
    """May only stand at the end of a chain."""

    needs_params: ClassVar[bool] = False
    """Reads the parameters."""

    freezes: ClassVar[bool] = False
    """Makes every update zero: where it is the last to act, the leaf may be of any dtype, and its gradient be None."""

    holds: ClassVar[Mapping[str, str]] = {}
    """The slots that hold moments of the gradient, each with its kind (see ``MomentKind``), as ``{"m": "average"}``.

    By it ``switch`` hands a first moment on, and states of other frameworks find their place. Its weight is the scalar
    slot ``weight``; where there is none, the weight that it would have after infinitely many steps."""

    debiases: ClassVar[bool] = False
    """Divides averages by their weights: its own, where it holds one; or else all that come in."""

    normalizes: ClassVar[bool] = False
    """Forgets how large the gradient is, as the sign does: an average behind it is no average of gradients."""

    takes_anything: bool = False
    """Sees leaves as they are, whatever their dtype, and refuses those that it has no meaning for itself."""

    nonnegative: ClassVar[tuple[str, ...]] = ()
    """The slots, weights among them, that no run makes negative: others in a checkpoint are refused. Of the state of a
    rule of whole trees, an entry is "state/s"."""

    real_only: ClassVar[bool] = False
    """Has no meaning for complex leaves."""

    scope: ClassVar[Literal["leaf", "tree"] | None] = None
    """The scope of ``measure`` before ``apply`` starts: each "leaf" by itself, the whole "tree", or None: nothing. Of a
    rule that scales, that of its factors."""

    reads: ClassVar[tuple[Literal["direction", "gradient", "second_moment", "param"], ...]] = ("direction",)
    """The lanes that ``measure`` sees of each leaf; one that reads ``param`` declares ``needs_params`` as well."""

    observes: ClassVar[tuple[Literal["incoming", "gradient", "direction", "param"], ...]] = ()
    """The lanes that an observer sees. It changes nothing: of each leaf it takes the numbers that ``terms`` names, in
    the pass of the rules around it, and makes of them and its state, by ``observe``, the next one."""

    maps_trees: ClassVar[bool] = False
    """Maps whole trees by ``init_tree`` and ``apply_tree`` instead of one array at a time."""

    scales: ClassVar[bool] = False
    """Multiplies by numbers, as a rule of whole trees: in the place of directions ``apply_tree`` gives one factor for
    all leaves, with scope = "tree", or a tree of one for each, with scope = "leaf". It sees the lanes that it declares
    to read, and the pass of the rules behind it multiplies: it makes no array.

    One that does more than multiply has an ``apply`` of its own, with ``c.factor`` beside the coefficients of ``tick``
    where there is one for the tree. It may map arrays in its state, ``slots_in`` it; ``apply_tree`` then gives
    coefficients, a dict of numbers by name."""

    takes_factors: ClassVar[bool] = False
    """Reads the gradient, as a rule that scales with scope = "tree", and knows from c and g what it makes of c·g. So it
    joins the pass of others that scale, right behind them, and has their factors in ``trees.factors``."""

    pure: ClassVar[bool] = False
    """True of a rule that maps whole trees, makes the same of the same arrays, and reads no extra arguments, so that
    outside of ``jit`` a step with it can be compiled once. Rules that map one array are taken to be so."""

    name: str | None
    """The name that the user gives the rule; None: by its label."""

    state_dtype: Any
    """The format the user wants slots kept in (see ``codecs``); None: the parameters' dtype, float32 at least."""

    where: Any
    """The leaves that the user wants it for, a selector or a tuple of selectors that must all agree; None: all."""

    @property
    def holds_leaves(self) -> bool:
        """True if it has slots of one array for each leaf."""
        return type(self).slots is not AbstractRule.slots

    @property
    def holds_tree(self) -> bool:
        """True if the state of the rule is one tree, as ``init_tree`` makes it."""
        return self.maps_trees or bool(self.observes)

    @property
    def maps_slots(self) -> bool:
        """True if a rule that scales maps arrays in its state, by an ``apply`` of its own."""
        return self.scales and type(self).slots_in is not AbstractRule.slots_in

    @property
    def takes_numbers(self) -> bool:
        """True if a rule that scales has ``terms``, whose numbers are taken for it."""
        return self.scales and type(self).terms is not AbstractRule.terms

    @property
    def multiplies(self) -> bool:
        """True if a rule that scales does nothing else."""
        return self.scales and type(self).apply is AbstractRule.apply

    @property
    def takes_stored(self) -> bool:
        """True if one that maps whole trees sees parameters in the dtype that they are stored in, bfloat16 say."""
        return False

    @property
    def label(self) -> str:
        """The name of the rule in a chain, if the user gives none."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The name that the user gives the rule, or else its label."""
        return self.name or self.label

    def hyperparameters(self) -> dict[str, Any]:
        """The numeric hyperparameters by name: a number, a scalar array, or a schedule of the count."""
        return {}

    def source(self) -> Any:
        """The code of the rule's methods; another value once one was replaced."""

    def blank(self) -> AbstractRule:
        """The rule without what a step gets as data: one for all values of its hyperparameters."""
        return self

    def upcoming(self, name: str, h: Named, count: jax.Array) -> jax.Array:
        """A hyperparameter's value in the next step; as it is now, if nothing says otherwise."""
        del count
        return getattr(h, name)

    def limits(self) -> dict[str, Limits]:
        """The numbers that hyperparameters may be, by name; those without limits may be left out."""
        return {}

    def complements(self) -> dict[str, str]:
        """The names under which ``tick`` gets 1 − β of each hyperparameter β that is below 1: ``decay_complement``."""
        below_one = [name for name in self.hyperparameters() if self.limits().get(name, Limits()).below == 1]
        return {name: f"{name}_complement" for name in below_one}

    def steady_weight(self, h: Named) -> Any:
        """The total weight of the gradients in the rule's first moment after infinitely many steps: 1 for an average.

        A trace has to say another, as 1/(1−μ); ``h`` is as in ``tick``.
        """
        del h
        return 1.0

    def scales_by(self, h: Named) -> Any:
        """The factor by which the rule multiplies the direction, which an average behind it is larger by; ``h`` as in
        ``tick``.
        """
        del h
        return 1.0

    def from_moment(self, slot: str, moment: Any, h: Named) -> Any:
        """A slot of one leaf, from the moment of its kind as others hold it: an array of numpy, float64 or wider.

        Only a rule whose slot differs from what ``holds`` calls it has to say so; ``h`` is as in ``tick``.
        """
        del slot, h
        return moment

    def hyperparameters_from(self, values: Mapping[str, Any]) -> Named:
        """The hyperparameters as ``tick`` gets them, from those that a state holds, residuals among them."""
        given = {name: values[name] for name in self.hyperparameters()}
        return Named(**given, **{named: complement(values, name) for name, named in self.complements().items()})

    def slots(self, param: jax.Array) -> Arrays:
        """The rule's state for one leaf, given the leaf in the dtype that slots are kept in."""
        del param
        return {}

    def scalars(self) -> dict[str, float]:
        """The rule's state that is one number for the whole tree, at the start."""
        return {}

    def tick(self, h: Named, scalars: Named, weights: Weights, count: jax.Array) -> Tick:
        """Once per step: coefficients from this step's hyperparameters ``h``; count is 0 on the first step.

        1 − β is in ``h`` as well, exact to rounding, for each β that is below 1 (``complements``). From ``1 - h.decay``
        the digits are gone that a float32 decay shares with 1: for 0.999 it is wrong by 1e-5 of itself.
        """
        del scalars, count
        return Tick(vars(h), {}, weights)

    def measure(self, groups: Sequence[Sequence[Any]], total: Total) -> Any:
        """One number for each group of leaves, as a vector or a list, or a dict of such by name.

        Each leaf is a group, or all are, as ``scope`` says. Of a leaf it sees the direction, an array; or, if ``reads``
        names other lanes, their arrays by name, as attributes.

        ``total(fn, arrays)`` is the sum of an elementwise function over all elements of all arrays;
        ``total(fn, arrays, others)`` that of a function of two arrays, taken from both lists. ``total.each`` of the
        same has one sum for each array.
        """
        raise NotImplementedError

    def settle(self, c: Named, measured: Any) -> Arrays:
        """Coefficients that follow from what was measured of a leaf's group: a number, or a dict of them by name."""
        del c
        return {"measured": measured}

    def shows_finite(self, measured: Any) -> jax.Array | None:
        """True if what was measured of a group is a number that no inf or NaN in the direction leaves possible.

        Where it is so, nobody has to read the direction to know that it is finite; where not, nothing is known. None,
        the default: it never is.
        """
        del measured

    def apply(self, signal: Signal, slots: Named, param: Any, c: Named) -> tuple[Signal, Arrays]:
        """The rule itself, for one array: signal and slots before to signal and slots after.

        ``param`` is None but for a rule that declares ``needs_params``. All arrays that are returned have the shape of
        the leaf, and the slots are those that ``slots`` declares.
        """
        del slots, param
        return (signal._replace(direction=c.factor * signal.direction) if self.scales else signal), {}

    def terms(self, lanes: Named) -> Terms:
        """Elementwise functions of a leaf's lanes by name, each with what an observer takes of it over the leaf.

        The incoming gradient is the gradient lane itself where no rule has edited it. ``lanes.param`` is None where
        there are no parameters. A leaf without one of the terms has 0 in its place.

        A rule that scales has the lanes that it reads, and ``lanes_in`` its state; those of all such rules of a pass
        are read once, before it, and what is taken of them is in ``trees.numbers``.
        """
        del lanes
        return {}

    def lanes_in(self, state: Any) -> dict[str, Any]:
        """The trees in the state of a rule that scales that ``terms`` sees beside lanes, by name."""
        del state
        return {}

    def observe(self, numbers: Mapping[str, Numbers] | None, state: Any, executor: Any) -> Any:
        """The state of an observer after a step.

        ``numbers`` has for each term one number for each leaf that the rule acts on, in float32 or wider; it is None
        in a step for which no observer's ``due`` asks.
        """
        del numbers, executor
        return state

    def due(self, state: Any) -> jax.Array | None:
        """True if an observer takes numbers in this step; None: in each."""
        del state

    def init_tree(self, params: Any) -> Any:
        """The state of an observer, or of a rule that maps whole trees, for parameters in the dtype of arithmetic."""
        del params

    def apply_tree(self, trees: Trees, state: Any) -> tuple[Any, Any]:
        """A rule that maps whole trees: the lanes and its state before to the direction and its state after.

        One that declares ``scales`` gives factors for the direction.
        """
        return trees.direction, state

    def slots_in(self, state: Any) -> dict[str, Any]:
        """The trees in the state of a rule that scales that ``apply`` gets as slots, by name: an array for each leaf.

        ``apply_tree`` leaves them as they are.
        """
        del state
        return {}

    def with_slots(self, state: Any, slots: dict[str, Any]) -> Any:
        """The state of a rule that scales with what ``apply`` made of the ``slots_in`` it."""
        del slots
        return state
