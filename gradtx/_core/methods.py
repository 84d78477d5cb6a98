"""The methods of a rule, called: what they raise and what they return that is wrong, in words.

They are called when a step is traced, once per compilation, so that nothing here takes time in a step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._core.contract import AbstractRule, Arrays, Named, Tick, Total, Trees
from gradtx._core.declarations import kind
from gradtx._core.numerics import Numbers, is_complex, is_inexact, real_dtype
from gradtx._core.signal import Signal, Weights


def numbered(rule: AbstractRule) -> dict[str, float]:
    """The scalar slots at the start."""
    with _called(rule, "scalars"):
        scalars = rule.scalars()
    if not isinstance(scalars, dict) or not all(isinstance(x, bool | int | float) for x in scalars.values()):
        raise TypeError(
            f"{named(rule)}: scalars must return numbers by their names, as {{'weight': 0.0}}, found "
            f"{scalars if isinstance(scalars, dict) else kind(scalars)}."
        )
    return scalars


def slotted(rule: AbstractRule, param: jax.Array, kinds_alone: bool = False) -> Arrays:
    """The slots of a leaf, each of its shape and dtype (or the real one of that).

    Args:
        rule: the rule.
        param: the leaf.
        kinds_alone: whether only what is complex matters, and no other difference of dtypes.
    """
    with _called(rule, "slots"):
        slots = rule.slots(param)
    who, example = f"{named(rule)}: slots", "{'m': jnp.zeros_like(param)}"
    if not isinstance(slots, dict):
        raise TypeError(f"{who} must return arrays by their names, as {example}, found {kind(slots)}.")
    for name, x in slots.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"{who} returns a slot by the name {name!r}, which apply could not read as slots.{name}.")
        if name in rule.scalars():
            raise TypeError(f"{who} returns {name!r}, and scalars does too: give each a name of its own.")
        if not hasattr(x, "dtype") or jnp.shape(x) != jnp.shape(param):
            raise ValueError(
                f"{who} returns {name} as {kind(x)}, for a leaf of shape {jnp.shape(param)}. A slot has the shape of "
                f"its leaf: write {example}. One number for all leaves belongs into scalars."
            )
        if not kinds_alone and x.dtype not in (param.dtype, real_dtype(param.dtype)):
            raise TypeError(
                f"{who} returns {name} in {x.dtype}, for a leaf in {param.dtype}. A slot has the dtype of its leaf: "
                f"write {example}, of param.real for one that is real. The number of steps is the count that tick gets."
            )
    return slots


def ticked(rule: AbstractRule, h: Named, scalars: Named, weights: Weights, count: jax.Array) -> Tick:
    """The numbers that a rule computes once per step."""
    declared = set(vars(scalars))
    with _called(rule, "tick", h=h, scalars=scalars, weights=weights):
        tick = rule.tick(h, scalars, weights, count)
    who = f"{named(rule)}: tick"
    if not isinstance(tick, Tick):
        raise TypeError(f"{who} must return gradtx.Tick(coefficients, scalars, weights), found {kind(tick)}.")
    if not isinstance(tick.coefficients, dict):
        raise TypeError(f"{who} must return coefficients by their names, found {kind(tick.coefficients)}.")
    if not isinstance(tick.weights, Weights):
        raise TypeError(f"{who} must return the weights it got, or weights._replace(...), found {kind(tick.weights)}.")
    _check_names(f"{who} returns the scalars", tick.scalars, declared, "scalars")
    given = (("coefficient", tick.coefficients), ("scalar", tick.scalars), ("weight", tick.weights._asdict()))
    for what, values in given:
        for name, value in values.items():
            _check_number(f"{who} returns the {what} {name}", value)
    return Tick(_arrays(tick.coefficients), _arrays(tick.scalars), Weights(*map(jnp.asarray, tick.weights)))


def to_measure(rule: AbstractRule, lanes: Mapping[str, Any]) -> Any:
    """The lanes of a leaf as a measurement reads them: the direction, or by name all that the rule declares."""
    if rule.reads == ("direction",):
        return lanes["direction"]
    return Named(**{lane: lanes[lane] for lane in rule.reads})


def measured(rule: AbstractRule, groups: Sequence[Sequence[Any]], total: Total) -> Numbers | dict[str, Numbers]:
    """One number for each group of leaves, or several by name."""
    with _called(rule, "measure"):
        numbers = rule.measure(groups, total)
    if isinstance(numbers, dict):
        return {name: _numbers(rule, vector, len(groups)) for name, vector in numbers.items()}
    return _numbers(rule, numbers, len(groups))


def _numbers(rule: AbstractRule, numbers: Any, groups: int) -> Numbers:
    if isinstance(numbers, list | tuple):
        fits = len(numbers) == groups and not any(jnp.ndim(number) for number in numbers)
    else:
        fits = jnp.shape(numbers) == (groups,)
    if not fits:
        raise ValueError(
            f"{named(rule)}: measure must return a vector with one number for each of {groups} groups, or a dict of "
            f"such vectors, found {kind(numbers)}."
        )
    return [jnp.asarray(x) for x in numbers] if isinstance(numbers, list | tuple) else jnp.asarray(numbers)


def observed(rule: AbstractRule, lanes: Mapping[str, Any]) -> dict[str, tuple[Any, jax.Array]]:
    """The terms of a leaf that an observer, or a rule that scales, takes numbers of."""
    given = Named(**lanes)
    with _called(rule, "terms", lanes=given):
        terms = rule.terms(given)
    who, like = f"{named(rule)}: terms", next(x for x in lanes.values() if x is not None)
    if not isinstance(terms, dict) or not all(isinstance(x, tuple) and len(x) == 2 for x in terms.values()):
        raise TypeError(f"{who} must return, by name, 'sum' or 'norm' and an array, found {kind(terms)}.")
    for name, (how, x) in terms.items():
        if how not in ("sum", "norm"):
            raise ValueError(f"{who}: {name} is taken by {how!r}; known are 'sum' and 'norm'.")
        _check_array(f"{who} returns {name}", x, like, like.dtype)
    return terms


def settled(rule: AbstractRule, c: Arrays, number: Any) -> Arrays:
    """The coefficients that follow from what was measured."""
    given = Named(**c)
    with _called(rule, "settle", c=given):
        coefficients = rule.settle(given, number)
    who = f"{named(rule)}: settle"
    if not isinstance(coefficients, dict):
        raise TypeError(
            f"{who} must return coefficients by their names, as {{'factor': ...}}, found {kind(coefficients)}."
        )
    return _coefficients(who, coefficients)


def _coefficients(who: str, coefficients: Arrays) -> Arrays:
    for name, value in coefficients.items():
        _check_number(f"{who} returns the coefficient {name}", value)
    return _arrays(coefficients)


def applied(rule: AbstractRule, signal: Signal, slots: Arrays, param: Any, c: Arrays) -> tuple[Signal, Arrays]:
    """The signal and the slots of a leaf after the rule."""
    given, coefficients = Named(**slots), Named(**c)
    with _called(rule, "apply", signal=signal, slots=given, c=coefficients):
        returned = rule.apply(signal, given, param, coefficients)
    who, example = f"{named(rule)}: apply", "return signal._replace(direction=...), {...}"
    if isinstance(returned, Signal) or not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"{who} must return a signal and a dict of slots, found {kind(returned)}: {example}.")
    after, slots_after = returned
    if not isinstance(after, Signal):
        raise TypeError(f"{who} must return a signal first, found {kind(after)}: {example}.")
    _check_names(f"{who} returns the slots", slots_after, slots.keys(), "slots")
    leaf = signal.direction
    _check_array(f"{who} returns the direction", after.direction, leaf, leaf.dtype)
    if after.second_moment is not None:
        _check_array(f"{who} returns the second moment", after.second_moment, leaf, real_dtype(leaf.dtype))
    for name, x in slots_after.items():
        _check_array(f"{who} returns the slot {name}", x, leaf, slots[name].dtype)
    return _checked_lanes(rule, who, signal, after), _arrays(slots_after)


def _checked_lanes(rule: AbstractRule, who: str, before: Signal, after: Signal) -> Signal:
    """The lanes after a rule: those that it changes, it declares."""
    if after.gradient is not before.gradient and after.gradient is not after.direction and not rule.filters:
        raise TypeError(
            f"{who} changes the gradient, which would be lost: a rule in front of the first that accumulates edits the "
            "gradient by editing the direction; behind it, the gradient stays as it is, but for a rule that says "
            "filters = True."
        )
    second_moment, declared = after.second_moment, rule.second_moment
    if after.gradient is not before.gradient:
        _check_array(f"{who} returns the gradient", after.gradient, before.gradient, before.gradient.dtype)
    if second_moment is None and (
        declared in ("makes", "edits") or (before.second_moment is not None and declared != "uses")
    ):
        what = f"declares second_moment = {declared!r}" if declared else "declares no second_moment"
        raise TypeError(f"{who} returns no second moment, and the rule {what}: {_SECOND_MOMENT}.")
    if second_moment is not None and before.second_moment is None and declared != "makes":
        raise TypeError(f"{who} returns a second moment, and there was none: {_SECOND_MOMENT}.")
    passed_on = None if second_moment is None or declared == "uses" else jnp.asarray(second_moment)
    return Signal(after.gradient, jnp.asarray(after.direction), passed_on)


_SECOND_MOMENT = (
    "second_moment = 'makes' is for a rule that makes one, 'edits' for one that needs and changes it, 'uses' for one "
    "that needs it and uses it up (signal._replace(second_moment=None))"
)


def started(rule: AbstractRule, params: Any) -> Any:
    """The state at the start of an observer, or of a rule that maps whole trees."""
    with _called(rule, "init_tree"):
        return rule.init_tree(params)


def tree_applied(rule: AbstractRule, trees: Trees, state: Any) -> tuple[Any, Any]:
    """The directions and the state after a rule that maps whole trees."""
    with _called(rule, "apply_tree"):
        returned = rule.apply_tree(trees, state)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"{named(rule)}: apply_tree must return the directions and the state, found {kind(returned)}.")
    if rule.scales:
        return _checked_factors(rule, trees, returned[0]), returned[1]
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (returned[0], trees.direction))
    if jax.tree.flatten(shapes) != jax.tree.flatten(expected):  # a module need not compare by what it holds
        raise ValueError(
            f"{named(rule)}: apply_tree returned directions of another structure or of other shapes than it got: "
            f"{shapes}, not {expected}."
        )
    return returned


def factors_like(rule: AbstractRule, trees: Trees) -> Any:
    """The structure of the factors of a rule that scales."""
    return 0.0 if rule.scope == "tree" else jax.tree.map(lambda _: 0.0, trees.incoming)


def _checked_factors(rule: AbstractRule, trees: Trees, factors: Any) -> Any:
    if rule.maps_slots and isinstance(factors, dict):
        return _coefficients(f"{named(rule)}: apply_tree", factors)
    alike = jax.tree.structure(factors) == jax.tree.structure(factors_like(rule, trees))
    if not alike or any(jnp.ndim(factor) for factor in jax.tree.leaves(factors)):
        expected = "one factor" if rule.scope == "tree" else "a tree with one factor for each leaf"
        raise ValueError(
            f"{named(rule)}: apply_tree must return {expected}, since the rule declares scales = True and scope = "
            f"{rule.scope!r}, found shapes {jax.tree.map(jnp.shape, factors)}."
        )
    return factors


def _check_names(what: str, returned: Any, declared: Iterable[str], method: str) -> None:
    if not isinstance(returned, dict):
        raise TypeError(f"{what} as {kind(returned)}: return a dict, with an entry for each that {method} declares.")
    missing, unknown = sorted(set(declared) - set(returned)), sorted(set(returned) - set(declared), key=str)
    if missing:
        raise TypeError(f"{what} without {_listing(missing)}: return each that the method {method} declares.")
    if unknown:
        raise TypeError(
            f"{what} with {_listing(unknown)}, which would be lost: the method {method} declares "
            f"{_listing(sorted(declared)) or 'none'}."
        )


def _check_number(what: str, value: Any) -> None:
    if not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array) or jnp.ndim(value):
        raise TypeError(f"{what} as {kind(value)}: it must be one number. What differs by element belongs into apply.")


def _check_array(what: str, x: Any, leaf: jax.Array, dtype: jnp.dtype) -> None:
    shape = () if isinstance(x, int | float | complex) else getattr(x, "shape", None)
    if shape != leaf.shape:
        raise ValueError(
            f"{what} as {kind(x)}, for a leaf of shape {leaf.shape}. Nothing is broadcast: return an array of "
            "that shape, as jnp.zeros_like(signal.direction) is."
        )
    actual = jnp.result_type(x)
    if not is_inexact(actual) and not isinstance(x, int | float):
        raise TypeError(f"{what} in {actual}, and it must be in {dtype}: write x.astype(signal.direction.dtype).")
    if is_complex(actual) and not is_complex(dtype):
        raise TypeError(f"{what} in {actual}, and it must be real: its imaginary part would be lost. Take x.real.")


def _arrays(values: Mapping[str, Any]) -> Arrays:
    return {name: jnp.asarray(value) for name, value in values.items()}


# -- Words ------------------------------------------------------------------------------------------------------------


def named(rule: AbstractRule) -> str:
    """The beginning of a message about a rule."""
    return f"gradtx: rule {rule.title!r}"


def _listing(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names))


@contextlib.contextmanager
def _called(rule: AbstractRule, method: str, **given: Any) -> Iterator[None]:
    """The errors of a method, with the name of the rule in front; a name that it was not given, in words."""
    try:
        yield
    except Exception as error:
        who = f"{named(rule)}: {method}"
        if str(error).startswith("gradtx: ") and not isinstance(error, dataclasses.FrozenInstanceError):
            raise
        if (words := _words(rule, error, given)) is not None:
            raise TypeError(f"{who} {words}") from error
        if type(error).__module__ == "builtins" and len(error.args) == 1:
            raise type(error)(f"{who}: {error}") from error
        error.add_note(f"{who} raised this.")
        raise


def _words(rule: AbstractRule, error: Exception, given: Mapping[str, Any]) -> str | None:
    match error:
        case dataclasses.FrozenInstanceError():
            return "sets an attribute of the rule. A rule is a value: what changes is a slot, or a scalar."
        case jax.errors.TracerArrayConversionError():
            return "gives an array to numpy, which would need its numbers before there are any: take jax.numpy."
        case jax.errors.TracerBoolConversionError():
            return (
                "decides by a number of the step, in an if, while, and, or, not, min or max of Python, before there is "
                "any: take jnp.where, &, |, ~, jnp.minimum or jnp.maximum."
            )
        case jax.errors.ConcretizationTypeError() | jax.errors.TracerIntegerConversionError():
            return "makes a number of Python of an array, by float(), int() or as an index: keep it an array."
        case TypeError() if "SimpleNamespace' object is not subscriptable" in str(error):
            return "reads by [...] what is an attribute: slots.m, c.decay, h.decay, scalars.weight."
        case TypeError() if "sequence by non-int" in str(error) or "concatenate tuple" in str(error):
            return (
                "computes with the signal as a whole: take signal.direction, and return signal._replace(direction=...)."
            )
        case AttributeError() if "can't set attribute" in str(error):
            return "sets a lane in place: write signal._replace(direction=...)."
        case AttributeError(name=str(name), obj=obj):
            for what, values in given.items():
                if obj is values:
                    return f"reads {what}.{name}, and {_source(rule, what, name, values)}."
            if obj is rule:
                meant = [what for what, values in given.items() if isinstance(values, Named) and name in vars(values)]
                hint = f"; is {meant[0]}.{name} meant?" if meant else "."
                return f"reads self.{name}, which the rule does not have{hint}"
    return None


def _source(rule: AbstractRule, what: str, name: str, values: Any) -> str:
    """The place that a name has to come from, and the names that there are."""
    if isinstance(values, Signal):
        return "a signal has gradient, direction and second_moment; signal._replace(direction=...) changes one"
    if isinstance(values, Weights):
        return "weights have direction and second_moment"
    known = _listing(vars(values)) or "none"
    if what == "slots":
        hint = f"a scalar is for tick, which hands it on as a coefficient, c.{name}" if name in rule.scalars() else (
            f"declare it there, as {{{name!r}: jnp.zeros_like(param)}}")  # fmt: skip
        return f"the method slots declares {known}; {hint}"
    if what == "scalars":
        return f"the method scalars declares {known}; declare it there, as {{{name!r}: 0.0}}"
    fields = {field.name: field for field in dataclasses.fields(rule)}  # pyright: ignore[reportArgumentType] - a dataclass
    hint = ""
    if name in fields and "hyper" not in fields[name].metadata:
        hint = f"; the field {name} is no hyper(), and is read as self.{name}"
    elif what == "c" and name in rule.hyperparameters():
        hint = f"; hand {name} on"
    if what == "h":
        return f"the hyperparameters (fields made by gradtx.hyper) are {known}{hint}"
    giver = "settle" if rule.scope is not None else "tick"
    return f"the coefficients that {giver} returns are {known}{hint}"
