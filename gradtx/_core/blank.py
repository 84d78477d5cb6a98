"""Rules without the values of their hyperparameters, so that a step is compiled once for all values.

Outside of ``jit`` a step gets hyperparameters as data, those of schedules too. What is compiled then must not hold a
number that it was compiled with: a rule stands in it with a ``Blank`` in place of each. Rules read hyperparameters
from what they are handed; one that reads its own field meets the blank, and from then on its values are compiled in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import jax

_read: weakref.WeakSet[type] = weakref.WeakSet()
_ahead: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()


class Lesson(BaseException):  # no error, and not to be taken for one
    """A fact about a class of rules that only running it shows; once it is learned, the step is run again."""

    def __init__(self, kind: type, name: str):
        super().__init__(f"{kind.__name__}.{name}")
        self.kind, self.name = kind, name

    def learn(self) -> None:
        """Remember it."""
        raise NotImplementedError


class ReadsItself(Lesson):
    """A rule reads a hyperparameter from its own field."""

    def learn(self) -> None:
        """Remember it."""
        _read.add(self.kind)


class LooksAhead(Lesson):
    """A rule asks for the value of a hyperparameter in the next step."""

    def learn(self) -> None:
        """Remember it."""
        _ahead.setdefault(self.kind, set()).add(self.name)


def reads_itself(kind: type) -> bool:
    """True if rules of this class read hyperparameters from their own fields."""
    return kind in _read


def looks_ahead(kind: type) -> set[str]:
    """The hyperparameters whose next value rules of this class ask for."""
    return _ahead.get(kind, set())


class Blank:
    """A stand-in for the number in the field of a hyperparameter; any use of it is a lesson."""

    __slots__ = ("_kind", "_name")

    def __init__(self, kind: type, name: str):
        self._kind, self._name = kind, name

    def __repr__(self) -> str:
        return "..."

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._used()

    def _used(self, *_: Any) -> NoReturn:
        raise ReadsItself(self._kind, self._name)

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - what isinstance asks
        self._used()


for _operation in (
    "abs add and array bool bytes complex contains divmod eq float floordiv format ge getitem gt hash index int iter "
    "invert jax_array le len lt mod mul ne neg or pos pow radd rand rdivmod rfloordiv rmod rmul ror round rpow rsub "
    "rtruediv rxor str sub truediv xor"
).split():
    setattr(Blank, f"__{_operation}__", Blank._used)


class BlankSchedule(Blank):
    """The same for a schedule."""

    __slots__ = ()

    def __call__(self, *_: Any) -> NoReturn:
        self._used()


def value_of(field: Any) -> Any:
    """The value of a field to compare by: of a blank that it is one, of an array which one it is."""
    if is_blank(field):
        return type(field)
    return id(field) if isinstance(field, jax.Array) else field


def is_blank(value: Any) -> bool:
    """True if a value is a blank."""
    return type(value) is Blank or type(value) is BlankSchedule


def code_of(kind: type, root: type) -> tuple[Any, ...]:
    """The code of the methods of a class, down from ``root``: other than before, once one was replaced."""
    members = []
    for cls in kind.__mro__[: kind.__mro__.index(root)]:
        for name, member in vars(cls).items():
            function: Callable[..., Any] = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
            code = getattr(function, "__code__", None)
            if code is not None and not name.startswith("__"):
                members.append((name, function, code))
    return tuple(members)
