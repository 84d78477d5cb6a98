"""The class of a rule, looked at when it is made: fields, declarations, methods, and names that look misspelt."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gradtx._core.contract import AbstractRule, MomentKind, Tick
from gradtx._core.signal import Signal, Weights

HOOKS = (
    *("slots", "scalars", "tick", "measure", "settle", "shows_finite", "apply", "init_tree", "apply_tree"),
    *("slots_in", "with_slots"),
    *("steady_weight", "scales_by", "from_moment"),
)
"""The methods that a rule overrides."""

DECLARATIONS: dict[str, tuple[Any, ...]] = {
    "accumulates": (True, False, None),
    "filters": (True, False),
    "second_moment": ("makes", "edits", "uses", None),
    "last": (True, False),
    "needs_params": (True, False),
    "real_only": (True, False),
    "scope": ("leaf", "tree", None),
    "reads": ("direction", "gradient", "second_moment", "param"),
    "observes": ("incoming", "gradient", "direction", "param"),
    "maps_trees": (True, False),
    "scales": (True, False),
    "takes_factors": (True, False),
    "holds": tuple(MomentKind),
    "debiases": (True, False),
    "normalizes": (True, False),
}
"""The declarations of a rule, and the values that they may have; ``equation``, a string, is another."""

CLOSED = ("init", "update", "rules", "names", "acts_on")
"""The members that are the same for all rules: a chain calls none of these."""


def those_of_gradtx(says: Callable[[type[AbstractRule]], bool]) -> list[str]:
    """The names of gradtx's rules whose classes declare something; one that depends on the form is not asked."""

    def below(cls: type) -> Iterator[type]:
        for derived in cls.__subclasses__():
            yield derived
            yield from below(derived)

    rules = [cls for cls in below(AbstractRule) if cls.__module__.startswith("gradtx.rules.")]
    return [cls.__name__ for cls in rules if _always(cls) and says(cls)]


def _always(cls: type) -> bool:
    """True if the declarations of a class are the same for all its rules."""
    return not any(isinstance(inspect.getattr_static(cls, name), property) for name in DECLARATIONS)


def check_body(cls: type) -> None:
    """A class of a rule before it is made a dataclass: what that would hide.

    Raises:
        TypeError: for an ``__init__``, or for a method that no chain would call.
    """
    who = f"gradtx: rule {cls.__name__!r}"
    if "__init__" in vars(cls):
        raise TypeError(
            f"{who} defines __init__, which its fields make: annotate an argument to make it a field, as in "
            "decay: gradtx.Hyper = gradtx.hyper(default=0.9), and look at it in __post_init__, after "
            "super().__post_init__()."
        )
    if inspect.isfunction(method := vars(cls).get("__post_init__")) and method.__name__ not in method.__code__.co_names:
        raise TypeError(
            f"{who} defines __post_init__ and does not call super().__post_init__(), which looks at hyperparameters."
        )
    for name in CLOSED:
        if name in vars(cls):
            raise TypeError(
                f"{who} defines {name}, which is the same for all rules; a chain calls none of it. A rule says what "
                "happens to one array: apply(self, signal, slots, param, c)."
            )


def unhashable(name: str, values: Mapping[str, Any]) -> TypeError:
    """The error of a value with a field that is none."""

    def is_hashable(value: Any) -> bool:
        with contextlib.suppress(TypeError):
            return isinstance(hash(value), int)
        return False

    wrong = [f"the field {field} is {kind(value)}" for field, value in values.items() if not is_hashable(value)]
    return TypeError(
        f"gradtx: {name!r}: {' and '.join(wrong)}, which has no hash, and rules and what is made of them are values: "
        "take a number made by gradtx.hyper, a tuple, or an array of jax, which is compared by identity."
    )


def unmade(cls: type, error: Exception) -> Exception:
    """The error of a class that is no dataclass, in words."""
    bare = [name for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)]
    message = f"{error}."
    if "type annotation" in str(error) and bare:
        message = f"{bare[0]} has no annotation, and would be no field: write {bare[0]}: gradtx.Hyper = gradtx.hyper()."
    elif "mutable default" in str(error):
        message = f"{error}. A rule is a value, which can be hashed: take a number or a tuple instead."
    return type(error)(f"gradtx: class {cls.__name__!r}: {message}")


def check_class(cls: type, base: type, hyper: Any) -> None:
    """A class of a rule, made a dataclass.

    Args:
        cls: the class.
        base: what all rules derive from.
        hyper: the annotation of a hyperparameter.

    Raises:
        TypeError: for a field that is no field or hides what is there, for a method that cannot be called as it will
            be, and for what looks like a misspelt method or declaration.
        ValueError: for a declaration of a value that means nothing.
    """
    who = f"gradtx: rule {cls.__name__!r}"
    fields: dict[str, dataclasses.Field[Any]] = cls.__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue] - a dataclass
    inherited = {
        name for name, field in fields.items() if any(_fields(parent).get(name) is field for parent in cls.__bases__)
    }
    for name in fields.keys() - inherited:
        _check_field(who, fields[name], base, hyper)
    for name in sorted(inherited & vars(cls).keys()):
        raise TypeError(
            f"{who}: {name} = {vars(cls)[name]!r} changes no field, since it has no annotation: write "
            f"{name}: gradtx.Hyper = gradtx.hyper(default=...)."
        )
    for name in HOOKS:
        if name in vars(cls):
            _check_call(who, cls, name)
    for name in DECLARATIONS:
        check_declared(who, name, inspect.getattr_static(cls, name))
    equation = inspect.getattr_static(cls, "equation")
    if not isinstance(equation, str | property | functools.cached_property):
        raise TypeError(
            f"{who}: equation must be LaTeX in a string (or a property that returns one), found {equation!r}"
        )
    for name, value in vars(cls).items():
        if not name.startswith("_") and name not in fields and not hasattr(base, name):
            _check_spelling(who, cls, base, name, value)


def _fields(cls: type) -> Mapping[str, Any]:
    return getattr(cls, "__dataclass_fields__", {})


def _check_field(who: str, field: dataclasses.Field[Any], base: type, hyper: Any) -> None:
    name = field.name
    if name in DECLARATIONS or name == "equation":
        raise TypeError(
            f"{who}: {name} is annotated, which makes it an argument: declare it as {name} = {field.default!r}."
        )
    if hasattr(base, name):
        raise TypeError(f"{who}: the field {name!r} would hide what every rule has by that name: take another name.")
    if isinstance(field.type, str):
        annotated = re.search(r"\bHyper\b", field.type) is not None
    else:
        annotated = set(typing.get_args(hyper)) <= set(typing.get_args(field.type))
    if annotated and "hyper" not in field.metadata:
        default = "" if field.default is dataclasses.MISSING else f"default={field.default!r}"
        raise TypeError(
            f"{who}: {name} is annotated as a hyperparameter and is no hyper(), so the state would not hold it: write "
            f"{name}: gradtx.Hyper = gradtx.hyper({default})."
        )


def parameters(name: str) -> list[str]:
    """The arguments that a method is called with."""
    return [*inspect.signature(getattr(AbstractRule, name)).parameters][1:]


def _check_call(who: str, cls: type, name: str) -> None:
    method, static = getattr(cls, name), inspect.getattr_static(cls, name)
    arguments = parameters(name)
    call = f"def {name}({', '.join(['self', *arguments])})"
    if isinstance(static, property) or not callable(method):
        raise TypeError(f"{who}: {name} is {kind(static)}, and must be a method: {call}.")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of what is not written in Python
        return
    try:
        signature.bind(*([] if isinstance(static, staticmethod | classmethod) else ["self"]), *arguments)
    except TypeError:
        raise TypeError(f"{who}: {name}{signature} cannot be called as it will be: {call}.") from None


def check_declared(who: str, name: str, value: Any) -> None:
    """Refuses a declaration of a value that means nothing."""
    options = DECLARATIONS[name]
    if isinstance(value, property | functools.cached_property):
        return
    if name in ("reads", "observes"):
        if not isinstance(value, tuple) or (name == "reads" and not value) or not set(value) <= set(options):
            raise ValueError(f"{who}: {name} must be a tuple of {alternatives(map(repr, options))}, found {value!r}.")
        return
    if name == "holds":
        if not isinstance(value, Mapping) or not all(kind in options for kind in value.values()):
            kinds = alternatives(repr(str(kind)) for kind in options)
            raise ValueError(f"{who}: holds must be a dict, from slots to {kinds}, found {value!r}.")
        return
    if not isinstance(value, bool | str | None) or value not in options:
        raise ValueError(f"{who}: {name} must be {alternatives(map(repr, options))}, found {kind(value)}.")


def _check_spelling(who: str, cls: type, base: type, name: str, value: Any) -> None:
    known = HOOKS if callable(value) or isinstance(value, staticmethod | classmethod) else ()
    known = (*DECLARATIONS, "equation") if isinstance(value, bool | str | dict | None) else known
    likely = difflib.get_close_matches(name.lower(), known, 1, cutoff=0.8)
    if likely and getattr(cls, likely[0]) is getattr(base, likely[0]):
        raise TypeError(
            f"{who}: a chain reads no {name!r}; do you mean {likely[0]!r}? If it is a helper, begin its name with an "
            "underscore."
        )


def kind(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "nothing (is there a return?)"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, Signal | Weights | Tick):
        return f"a {type(value).__name__} alone"
    if isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def alternatives(words: Iterable[str]) -> str:
    """Words in a list, with "or" before the last."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
