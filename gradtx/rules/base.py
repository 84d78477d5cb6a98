"""A rule as users write it: a frozen dataclass of hyperparameters that is an optax transformation."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx._core import codecs, declarations
from gradtx._core.blank import Blank, BlankSchedule, LooksAhead, code_of, reads_itself
from gradtx._core.contract import AbstractRule, Named
from gradtx._core.limits import Limits, checked, constant, constant_of, scheduled
from gradtx._core.numerics import split
from gradtx._core.selectors import selector
from gradtx._core.state import ChainState
from gradtx._engine.checks import check_injected
from gradtx._engine.engine import Engine
from gradtx._engine.inside import Inside
from gradtx._engine.transformation import Transformation, Value, unfilled

Hyper = ArrayLike | Callable[[jax.Array], Any]
"""A numeric hyperparameter: a number, a scalar array (traced ones too), or a schedule of the count."""


def hyper(
    *positional: NoReturn,
    default: Any = dataclasses.MISSING,
    low: float | None = None,
    below: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A numeric hyperparameter of a rule, as a dataclass field (see ``Rule`` for an example).

    It lives in the state, and ``tick`` gets this step's value.

    Args:
        default: what it is if not given; with None it may be None, and is then no hyperparameter.
        low: numbers below are refused with a ValueError.
        below: numbers that are not below are refused with a ValueError. With ``below=1``, as for a decay β, ``tick``
            gets 1 − β too, with all its digits, as ``h.decay_complement``.
        high: numbers above are refused with a ValueError.
        above: numbers that are not above are refused with a ValueError.

    NaN is refused as well. All ways in keep to the limits: the constructor, ``set_hyperparams``, ``sweep``, and what a
    schedule returns. Under ``jit`` the values of schedules and arrays are not known, and not checked.
    """
    if positional:
        raise TypeError(
            f"gradtx: hyper takes its default by name, as type checkers want it: hyper(default={positional[0]!r})"
        )
    return dataclasses.field(default=default, metadata={"hyper": Limits(low, below, high, above)})


def _checked(rule: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The hyperparameter as a float where its value is known; schedules and values under trace as they are."""
    check_injected(f"{rule}: {field.name}", value)
    if callable(value) or isinstance(value, jax.core.Tracer) or (value is None and field.default is None):
        return value
    wanted = "a number, a scalar array or a schedule"
    number = checked(f"{rule}: {field.name}", value, field.metadata["hyper"], wanted=wanted)
    if number.shape != ():
        raise TypeError(f"{rule}: {field.name} must be {wanted}, found {value!r}")
    return float(number)


@dataclass_transform(frozen_default=True, field_specifiers=(hyper, dataclasses.field))
class Rule(Value[ChainState], AbstractRule):
    """An elementary rule, as a class to derive from: fields are its hyperparameters, methods its mathematics.

    A field that is no ``hyper`` is a constant of the rule; of those annotated ``bool``, ``int`` or ``float`` (or one of
    these or None) another value is refused.

    Deriving makes a frozen dataclass. A rule by itself is an optax transformation, and a chain of one. Methods are
    compiled, outside of ``jit`` too: a global that one reads stays as it was when it was compiled. What changes is a
    hyperparameter (a schedule is called in each step), a slot, or a scalar.

    Args:
        name: what the rule is called in the state; None: by its class.
        state_dtype: the format its slots are kept in; None: the parameters' own dtype, float32 at least. A floating
            dtype, to nearest: in bfloat16 an average with a decay near 1 can stall; ``"bfloat16_stochastic"``,
            ``"root8"``, ``"dynamic8"`` or a ``Codec``; or a dict of these by selectors of leaves (see ``where``), of
            which the first that chooses a leaf counts. Arithmetic is in float32 or wider all the same. Complex slots
            stay as they are.
        where: which leaves it acts on (see ``where``); None: all.

    >>> import gradtx, jax.numpy as jnp
    >>> class soft_sign(gradtx.Rule):
    ...     equation = r"u \\leftarrow u / (\\lvert u\\rvert + \\delta)"
    ...     delta: gradtx.Hyper = gradtx.hyper(default=1.0, low=0)
    ...
    ...     def apply(self, signal, slots, param, c):
    ...         u = signal.direction
    ...         return signal._replace(direction=u / (abs(u) + c.delta)), {}
    >>> tx = gradtx.chain(gradtx.momentum(0.9), soft_sign(), gradtx.scale_by_learning_rate(0.1))
    >>> tx
    chain(momentum(decay=0.9), soft_sign(delta=1.0), scale_by_learning_rate(learning_rate=0.1))
    >>> updates, state = tx.update(jnp.array([10.0]), tx.init(jnp.array([0.0])))
    >>> print(updates)
    [-0.05]
    """

    name: str | None = dataclasses.field(default=None, kw_only=True)
    state_dtype: Any = dataclasses.field(default=None, kw_only=True)
    where: Any = dataclasses.field(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any):
        declarations.check_body(cls)
        super().__init_subclass__(**kwargs)
        declarations.check_class(cls, Rule, Hyper)

    def __post_init__(self):
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ValueError(f"{self.label}: name must be a non-empty string, found {self.name!r}")
        if self.state_dtype is not None:
            storage = codecs.format_of(self.label, self.state_dtype)
            object.__setattr__(self, "state_dtype", storage)
            codecs.check_range(self.label, storage, [slot for slot in self.nonnegative if slot not in self.scalars()])
        if self.where is not None:
            object.__setattr__(self, "where", selector(self.where))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "hyper" in field.metadata:
                value = _checked(self.label, field, value)
            elif value is not field.default and (kind := constant_of(field.type)):
                value = constant(self.label, field.name, value, *kind)
            object.__setattr__(self, field.name, value)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rule itself."""
        return (self,)

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine((copy.copy(self),))  # a rule that held itself would be a circle

    def hyperparameters(self) -> dict[str, Any]:
        """The fields declared with ``hyper`` that are not None."""
        fields = [field.name for field in dataclasses.fields(self) if "hyper" in field.metadata]
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    def limits(self) -> dict[str, Limits]:
        """The limits that the fields were declared with."""
        return {field.name: field.metadata["hyper"] for field in dataclasses.fields(self) if "hyper" in field.metadata}

    def source(self) -> Any:
        """The code of its methods and of rules in it, and whether they read hyperparameters from the rule itself."""
        if self._is_blank:
            return vars(self)["_source"]
        inside = [tx.source() for tx in vars(self).values() if isinstance(tx, Transformation)]
        return code_of(type(self), Rule), reads_itself(type(self)), *inside

    @property
    def _is_blank(self) -> bool:
        return "_source" in vars(self)

    def blank(self) -> Rule:
        """The rule with blanks for its hyperparameters, those of chains in it too, and with nothing said of where."""
        if self._is_blank:
            return self
        kind = type(self)
        fields = {name: value for name, value in vars(self).items() if name != "_engine"} | {"where": None}
        inside = {name: tx for name, tx in fields.items() if isinstance(tx, Transformation) and Inside(tx).is_pure}
        fields |= {name: tx.blank() for name, tx in inside.items()}
        if not reads_itself(kind):
            for name, value in self.hyperparameters().items():
                fields[name] = BlankSchedule(kind, name) if callable(value) else Blank(kind, name)
        made: Any = unfilled(kind)
        vars(made).update(fields, _source=self.source())
        return made

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), vars(self).get("_source"))

    def upcoming(self, name: str, h: Named, count: jax.Array) -> jax.Array:
        """A hyperparameter's value in the next step: its schedule's, or as it is now."""
        field, now = name.removesuffix("_complement"), getattr(h, name)
        schedule = getattr(self, field)
        if type(schedule) is BlankSchedule:
            if name not in h.ahead:
                raise LooksAhead(type(self), field)
            return h.ahead[name]
        if not callable(schedule):
            return now
        upcoming: Any = scheduled(schedule, jnp.asarray(optax.safe_increment(count)), f"{self.label}.{field}")
        value, residual = split(upcoming, now.dtype)
        return value if field == name else (1 - value) - residual
