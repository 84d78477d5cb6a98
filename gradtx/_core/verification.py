"""A rule held to its contract before the first step: traced for one leaf, without computing anything."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from gradtx._core.contract import AbstractRule, Named
from gradtx._core.dataflow import Flow, flows
from gradtx._core.declarations import DECLARATIONS, check_declared, parameters
from gradtx._core.methods import applied, measured, named, numbered, settled, slotted, ticked, to_measure
from gradtx._core.numerics import SumOver, real_dtype
from gradtx._core.signal import Signal, Weights

AnyRule = TypeVar("AnyRule", bound=AbstractRule)

_sound: weakref.WeakKeyDictionary[type, set[Hashable]] = weakref.WeakKeyDictionary()
"""The structures that ``check`` has found right, of each class: fields that are no numbers."""


def check(rule: AbstractRule, leaf: jax.ShapeDtypeStruct) -> None:
    """A rule as it will run on a leaf, in the dtype of arithmetic; traced once for each structure of the rule.

    Raises:
        TypeError: for what the rule does not say or does not return, for what it reads and nothing gives, and for what
            cannot be traced.
        ValueError: for arrays of other shapes than the leaf's.
    """
    hash(rule)  # raises in words
    known = _sound.setdefault(type(rule), set())
    structure = _structure(rule)
    if structure in known:
        return
    _check_complete(rule)
    if not rule.holds_tree:
        _check_run(rule, leaf)
    if len(known) >= 100:
        known.clear()
    known.add(structure)


def _structure(rule: AbstractRule) -> Hashable:
    """The fields of a rule; of numbers, schedules and what has such in it only the kinds: none is kept alive."""
    return tuple(
        (type(value) if isinstance(value, float | None) else callable(value))
        if "hyper" in field.metadata
        else _kinds(value)
        for field in dataclasses.fields(rule)  # pyright: ignore[reportArgumentType] - a rule is a dataclass
        if field.name not in ("name", "state_dtype", "where")
        for value in [getattr(rule, field.name)]
    )


def _kinds(value: Any) -> Hashable:
    if isinstance(value, optax.GradientTransformation):
        return type(value), *map(type, getattr(value, "rules", ()))
    return id(value) if isinstance(value, jax.Array) else value


def _overrides(rule: AbstractRule, name: str) -> bool:
    return getattr(type(rule), name) is not getattr(AbstractRule, name)


def _check_complete(rule: AbstractRule) -> None:
    who = named(rule)
    for name in DECLARATIONS:
        check_declared(who, name, getattr(rule, name))
    mine, others = "apply", ("apply_tree", "init_tree", "terms", "observe")
    if rule.observes:
        mine, others = "terms", ("apply", "apply_tree", "slots", "measure", "settle")
    elif rule.maps_trees:
        one = () if rule.scales or _overrides(rule, "slots_in") else ("apply",)
        mine, others = "apply_tree", (*one, *(() if rule.scales else ("terms",)), "slots", "measure", "settle")
    for name in others:
        if _overrides(rule, name):
            raise TypeError(
                f"{who} defines {name}, which nothing calls, since it declares maps_trees = {rule.maps_trees}. A rule "
                "maps one array by apply, or with maps_trees = True all of them by apply_tree; one with observes sees "
                "terms of them."
            )
    if not _overrides(rule, mine):
        others = [name for name, value in vars(type(rule)).items() if inspect.isfunction(value) and name[:2] != "__"]
        defined = f" It defines {', '.join(others)}." if others else ""
        raise TypeError(
            f"{who} does nothing: it has no {mine}.{defined} Write def "
            f"{mine}({', '.join(['self', *parameters(mine)])})."
        )
    if rule.scope is None and (_overrides(rule, "measure") or _overrides(rule, "settle")):
        raise TypeError(
            f"{who} defines {'measure' if _overrides(rule, 'measure') else 'settle'}, which nothing calls, since it "
            "declares no scope: write scope = 'leaf' to measure each leaf, or 'tree' to measure all together."
        )
    if rule.scales:
        if not rule.maps_trees or rule.scope is None:
            raise TypeError(
                f"{who} declares scales = True, so it must declare maps_trees = True, and with scope = 'tree' give one "
                "factor from apply_tree, or with scope = 'leaf' a tree of them."
            )
    elif rule.scope is not None and not _overrides(rule, "measure"):
        raise TypeError(f"{who} declares scope = {rule.scope!r}, so it must define measure(self, groups, total).")
    if rule.scope is None and rule.reads != AbstractRule.reads:
        raise TypeError(
            f"{who} declares reads = {rule.reads!r} and no scope, so that nothing is measured: write scope."
        )
    if "param" in rule.reads and not rule.needs_params:
        raise TypeError(f"{who} declares reads = {rule.reads!r}, so it must declare needs_params = True.")
    if "second_moment" in rule.reads and rule.second_moment not in ("edits", "uses"):
        raise TypeError(f"{who} declares reads = {rule.reads!r}, so it must declare second_moment = 'edits' or 'uses'.")
    numbered(rule)


def _check_run(rule: AbstractRule, leaf: jax.ShapeDtypeStruct) -> None:
    """The rule on one leaf, without what it does not declare to read."""
    real = jax.ShapeDtypeStruct(leaf.shape, real_dtype(leaf.dtype))
    param = leaf if rule.needs_params else None
    second_moment = real if rule.second_moment in ("edits", "uses") else None
    try:
        remembers = _remembers(rule, leaf, param, second_moment)
    except Exception as error:
        uses = "second_moment = 'uses' (or 'edits')"
        for reads, declaration, given in (
            ("param", "needs_params = True", (leaf, second_moment)),
            ("signal.second_moment", uses, (param, real)),
            ("param and signal.second_moment", f"needs_params = True and {uses}", (leaf, real)),
        ):
            if error.__cause__ is not None and given != (param, second_moment) and _runs(rule, leaf, *given):
                raise TypeError(
                    f"{named(rule)}: apply reads {reads}, which is None for a rule that does not declare it: write "
                    f"{declaration}."
                ) from error
        raise
    if rule.scope is not None and not _overrides(rule, "settle"):
        raise TypeError(
            f"{named(rule)} defines measure, and no settle(self, c, measured): what it measures would be lost. "
            "settle makes coefficients for apply of it."
        )
    slots = jax.eval_shape(lambda x: slotted(rule, x), leaf)
    if unknown := sorted(set(rule.holds) - set(slots)):
        raise TypeError(
            f"{named(rule)} declares that it holds a moment in {', '.join(map(repr, unknown))}, and the method slots "
            f"declares {', '.join(map(repr, slots)) or 'none'}."
        )
    if remembers and rule.accumulates is None:
        raise TypeError(
            f"{named(rule)}: what apply returns depends on its slots, so the rule has to say whether it accumulates. "
            "Write accumulates = True if it averages or sums gradients, as momentum and rms do: behind it the gradient "
            "stays as it is, and rules change the direction alone. Write accumulates = False if it edits the direction "
            "as a clip does: in front of the first rule that accumulates, such rules edit the gradient too."
        )


def _runs(rule: AbstractRule, leaf: jax.ShapeDtypeStruct, param: Any, second_moment: Any) -> bool:
    """True if the methods of a rule return, be it something wrong."""
    try:
        _remembers(rule, leaf, param, second_moment)
    except Exception as error:
        return error.__cause__ is None
    return True


def _remembers(rule: AbstractRule, leaf: jax.ShapeDtypeStruct, param: Any, second_moment: Any) -> bool:
    """True if the direction or the second moment depends on the slots; the whole step of a rule is traced for it."""
    return _reaches(rule, leaf, param, second_moment, None)


def depends_on_count(rule: AbstractRule) -> bool:
    """True if steps depend on how many there were before: through the count, a weight, or a schedule.

    Of a rule that maps whole trees: if its code reads a count.
    """
    if any(callable(value) for value in rule.hyperparameters().values()):
        return True
    if rule.observes:
        return False
    if rule.maps_trees:
        code = getattr(rule.apply_tree, "__code__", None)
        return code is None or "count" in code.co_names
    real, count = jax.ShapeDtypeStruct((), jnp.dtype("float32")), jax.ShapeDtypeStruct((), jnp.int32)
    h = dict.fromkeys([*rule.hyperparameters(), *rule.complements().values()], real)
    scalars = dict.fromkeys(rule.scalars(), real)

    def coefficients(h: Any, scalars: Any, weights: Any, count: Any) -> Any:
        return ticked(rule, Named(**h), Named(**scalars), Weights(*weights), count).coefficients

    follow = range(len(h), len(h) + len(scalars) + 3)  # all but the hyperparameters
    return any(flow is not Flow.NONE for flow in flows(coefficients, h, scalars, (real, real), count, follow=follow))


def unread(rule: AbstractRule, leaf: jax.ShapeDtypeStruct) -> list[str]:
    """The numbers among the hyperparameters that neither lanes nor slots depend on: is ``self`` read instead?"""
    second_moment = jax.ShapeDtypeStruct(leaf.shape, real_dtype(leaf.dtype))
    lanes = leaf if rule.needs_params else None, second_moment if rule.second_moment in ("edits", "uses") else None
    numbers = [name for name, value in rule.hyperparameters().items() if not callable(value)]
    return [name for name in numbers if not rule.holds_tree and not _reaches(rule, leaf, *lanes, name)]


def _reaches(rule: AbstractRule, leaf: jax.ShapeDtypeStruct, param: Any, second_moment: Any, name: str | None) -> bool:
    """True if the lanes depend on the slots; or, given the name of a hyperparameter, lanes or slots on that."""
    rule = _timeless(rule)
    real = real_dtype(leaf.dtype)
    scalar, count = jax.ShapeDtypeStruct((), real), jax.ShapeDtypeStruct((), jnp.int32)
    slots = jax.eval_shape(lambda x: slotted(rule, x), leaf)
    complements = rule.complements()
    h = dict.fromkeys([*rule.hyperparameters(), *complements.values()], scalar)
    scalars = dict.fromkeys(rule.scalars(), scalar)

    def step(slots: Any, h: Any, lanes: Any, scalars: Any, weights: Any, count: Any) -> Any:
        gradient, direction, second_moment, param = lanes
        tick = ticked(rule, Named(**h), Named(**scalars), Weights(*weights), count)
        c = {name: value.astype(real) for name, value in tick.coefficients.items()}
        if rule.scope is not None:
            seen = to_measure(rule, Signal(gradient, direction, second_moment)._asdict() | {"param": param})
            groups = [[seen], [seen]] if rule.scope == "leaf" else [[seen, seen]]
            numbers = measured(rule, groups, _total)
            first = jax.tree.map(lambda x: x[0].astype(real), numbers, is_leaf=lambda x: not isinstance(x, dict))
            c = settled(rule, c, first)
            c = {name: value.astype(real) for name, value in c.items()}
        signal, after = applied(rule, Signal(gradient, direction, second_moment), slots, param, c)
        lanes_after = signal.direction, signal.second_moment
        return lanes_after if name is None else (lanes_after, after)

    follow = range(len(slots))
    if name is not None:  # dicts are flattened in the order of their keys
        follow = [len(slots) + sorted(h).index(key) for key in (name, complements.get(name)) if key is not None]
    lanes = (leaf, leaf, second_moment, param)
    relations = flows(step, slots, h, lanes, scalars, (scalar, scalar), count, follow=follow)
    return any(flow is not Flow.NONE for flow in relations)


def _timeless(rule: AnyRule) -> AnyRule:
    """The rule with a schedule that anyone can call in place of each schedule of its user, which may want numbers."""
    schedules = [name for name, value in rule.hyperparameters().items() if callable(value)]
    rule = copy.copy(rule) if schedules else rule
    for name in schedules:
        object.__setattr__(rule, name, lambda count: jnp.zeros(()))
    return rule


class _Sums(SumOver):
    """The sums of a measurement that is tried; of no arrays they would be 0."""

    def __call__(self, fn: Callable[..., jax.Array], *columns: Sequence[jax.Array]) -> jax.Array:
        if not callable(fn) or not columns:
            raise TypeError("total takes a function and the arrays to sum it over, as in total(jnp.square, groups[0])")
        return super().__call__(fn, *columns)


_total = _Sums()
