"""The numbers that a hyperparameter may be; all others are refused by name, whichever way they come in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gradtx._core.control import only_types


class Limits(NamedTuple):
    """The range of a hyperparameter; None: no limit.

    Attributes:
        low: the least number that it may be.
        below: the least number above all that it may be.
        high: the largest number that it may be.
        above: the largest number below all that it may be.
    """

    low: float | None = None
    below: float | None = None
    high: float | None = None
    above: float | None = None

    def __str__(self) -> str:
        words = (("at least", self.low), ("above", self.above), ("less than", self.below), ("at most", self.high))
        return " and ".join(f"{word} {limit:g}" for word, limit in words if limit is not None) or "a number"


def check_choice(rule: str, name: str, value: Any, options: Sequence[object]) -> None:
    """Refuses an argument that is none of some words or numbers.

    Raises:
        ValueError: for anything else.
    """
    if value not in options:
        raise ValueError(f"{rule}: {name} must be {' or '.join(map(repr, options))}, found {value!r}")


_MOST = int(jnp.iinfo(jnp.int32).max)


def integer(rule: str, name: str, value: Any, low: int, otherwise: str = "") -> int:
    """An argument that is an integer of int32, and at least ``low``.

    Args:
        rule, name: of which the argument is, and its name, for the error.
        value: what was given.
        low: the least that it may be.
        otherwise: what else it may be, for the error.

    Raises:
        TypeError: for something else than an integer.
        ValueError: for one out of range.
    """
    wanted = f"an integer from {low} to {_MOST}{otherwise}"
    number = _index(value)
    if number is None:
        raise TypeError(f"{rule}: {name} must be {wanted}, found {value!r}")
    if not low <= number <= _MOST:
        raise ValueError(f"{rule}: {name} must be {wanted}, found {number}")
    return number


def _index(value: Any) -> int | None:
    """The value as an integer; None if it is something else."""
    try:
        return None if isinstance(value, bool | np.bool_ | jax.core.Tracer) else operator.index(value)
    except TypeError:
        return None


def number(rule: str, name: str, value: Any, otherwise: str = "", infinite: bool = False) -> float:
    """An argument that is a real number.

    Args:
        rule, name, value, otherwise: as for ``integer``.
        infinite: whether it may be infinite.

    Raises:
        TypeError: for something else than a number.
        ValueError: for NaN, and for infinity unless it may be infinite.
    """
    number = _numbers(value)
    if number is None or number.shape != ():
        raise TypeError(f"{rule}: {name} must be a number{otherwise}, found {value!r}")
    if np.isnan(number) or (np.isinf(number) and not infinite):
        raise ValueError(f"{rule}: {name} must be {'a number' if infinite else 'finite'}{otherwise}, found {number:g}")
    return float(number)


def constant_of(annotation: Any) -> tuple[str, bool] | None:
    """Of an annotation bool, int or float the name, and whether it may be None; None for any other annotation."""
    words = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    kind = words.removesuffix(" | None")
    return (kind, kind != words) if kind in ("bool", "int", "float") else None


def constant(rule: str, name: str, value: Any, kind: str, optional: bool = False) -> Any:
    """An argument that is a bool, an int or a float.

    Args:
        rule, name, value: as for ``integer``. A value under trace is not known, and is none.
        kind: "bool", "int" or "float".
        optional: whether it may be None.

    Raises:
        TypeError: for something else.
        ValueError: for NaN.
    """
    otherwise = " or None" if optional else ""
    if value is None and optional:
        return value
    if kind == "float":
        return number(rule, name, value, otherwise, infinite=True)
    if kind == "bool" and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind == "int" and (index := _index(value)) is not None:
        return index
    wanted = "True or False" if kind == "bool" else "an integer"
    raise TypeError(f"{rule}: {name} must be {wanted}{otherwise}, found {value!r}")


def checked(
    what: str,
    value: Any,
    limits: Limits = Limits(),  # noqa: B008 - a value
    dtype: DTypeLike | None = None,
    wanted: str = "a number or a scalar array",
) -> np.ndarray:
    """A number, or an array of numbers, whose value is known, in float64; always a copy.

    Args:
        what: which hyperparameter, for the error.
        value: what was given for it.
        limits: those it must keep to.
        dtype: that it will be held in, which must hold it.
        wanted: what it must be, for the error.

    Raises:
        TypeError: for something else than real numbers.
        ValueError: for NaN, a number outside of the limits, and one too large for the dtype.
    """
    numbers = _numbers(value)
    if numbers is None:
        raise TypeError(f"{what} must be {wanted}, found {value!r}")
    outside = np.isnan(numbers)
    if limits.low is not None:
        outside |= numbers < limits.low
    if limits.below is not None:
        outside |= numbers >= limits.below
    if limits.high is not None:
        outside |= numbers > limits.high
    if limits.above is not None:
        outside |= numbers <= limits.above
    if outside.any():
        raise ValueError(f"{what} must be {limits}, found {numbers[outside].flat[0]:g}")
    if dtype is not None:
        lost = np.isfinite(numbers) & (np.abs(numbers) > float(jnp.finfo(dtype).max))
        if lost.any():
            raise ValueError(f"{what} is {numbers[lost].flat[0]:g}, which is infinite in {jnp.dtype(dtype).name}")
    return numbers


def _numbers(value: Any) -> np.ndarray | None:
    """The value in float64; None if it is something else than real numbers."""
    try:
        array = np.asarray(jax.device_get(value) if isinstance(value, jax.Array) else value)
        if array.dtype == object:  # integers beyond int64, fractions, decimals
            array = np.asarray(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    real = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
    return np.array(array, np.float64) if real else None


def scheduled(schedule: Callable[[jax.Array], Any], count: jax.Array, name: str) -> Any:
    """The value of a schedule; an error in it names the hyperparameter. Where only types matter, it is not asked."""
    if only_types.get():
        return jnp.zeros(())
    try:
        return schedule(count)
    except Exception as error:
        hint = ""
        if isinstance(count, jax.core.Tracer) and isinstance(error, jax.errors.JAXTypeError):
            hint = (
                " Under jit the count is traced: use jnp.where, jnp.interp and the like for Python's if, int(), math "
                "and numpy. Outside of jit a schedule may be plain Python."
            )
        error.add_note(f"gradtx: this happened in the schedule of hyperparameter {name}.{hint}")
        raise
