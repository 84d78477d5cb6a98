"""A rule as users write it: a frozen dataclass of hyperparameters that is an optax transformation."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from gradtx._core import declarations
from gradtx._core.blank import Blank, BlankSchedule, LooksAhead, code_of, is_blank, reads_itself, value_of
from gradtx._core.contract import Maths, Named
from gradtx._core.limits import Limits, checked, scheduled
from gradtx._core.numerics import split
from gradtx._core.selectors import Leaves, selector
from gradtx._core.state import ChainState
from gradtx._engine.checks import check_injected
from gradtx._engine.engine import Lifted

Hyper = ArrayLike | Callable[[jax.Array], Any]
"""A numeric hyperparameter: a number, a scalar array (traced ones too), or a schedule of the count."""


class Transformation(optax.GradientTransformationExtraArgs):
    """Anything made of rules: an optax transformation that runs its ``rules`` in order.

    Two are equal if they are made of equal rules with equal hyperparameters (arrays and schedules are compared by
    identity), so one can be a static argument of ``jax.jit``. It is also a pytree without leaves, so it can be an
    ordinary argument as well.
    """

    def __new__(cls, *args: Any, **kwargs: Any):
        # optax's class is a tuple (init, update). They are methods of a second object with the same attributes: a tuple
        # of its own methods would be a circle, which holds what schedules close over until the garbage collector runs.
        del args, kwargs
        other = tuple.__new__(cls, (None, None))
        made = tuple.__new__(cls, (other.init, other.update))
        object.__setattr__(other, "__dict__", vars(made))
        return made

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_static(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(
            f"gradtx: {name!r} cannot be set: a {type(self).__name__} is a value, which never changes. Hyperparameters "
            "are in the state, and set_hyperparams changes them there; for other rules build another chain. (Where a "
            f"class of rules is written, object.__setattr__(self, {name!r}, ...) in __post_init__ makes a value ready.)"
        )

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"gradtx: {name!r} cannot be deleted: a {type(self).__name__} is a value")

    # Pyright ignores: optax's class is a NamedTuple, whose two ways to another tuple would give something broken.
    def _replace(self, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise TypeError(
            f"gradtx: {', '.join(kwargs)} of a {type(self).__name__} cannot be replaced: init and update follow from "
            "its rules. Write a Rule, or an optax.GradientTransformation around this one."
        )

    __replace__ = _replace

    @classmethod
    def _make(cls, iterable: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise TypeError(f"gradtx: a {cls.__name__} is made of rules and not of init and update: call it")

    def __reduce__(self) -> tuple[Any, ...]:
        # For copy and pickle: by default the old protocols take the tuple along, and its functions have no names.
        return _unfilled, (type(self),), {name: value for name, value in vars(self).items() if name != "_lifted"}

    @property
    def label(self) -> str:
        """What it is called where the user gives no name."""
        return type(self).__name__

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in order."""
        raise NotImplementedError

    @functools.cached_property
    def _lifted(self) -> Lifted:
        return Lifted(self.rules)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each rule in the state, unique: as given, or its label, then label_1, label_2, ..."""
        return self._lifted.names

    def acts_on(self, leaves: Leaves, treedef: Any) -> list[list[bool]]:
        """For each rule, for each leaf, whether the rule acts on it (see ``where``).

        Raises:
            ValueError: for a rule that acts on none of them.
        """
        return self._lifted.chosen(leaves, treedef)

    # Pyright ignores: optax declares init and update as fields of a tuple; here they are methods of the same signature.
    def init(self, params: Any) -> ChainState:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state before the first step, for parameters of these shapes and dtypes.

        Raises:
            ValueError: if the order of the rules makes no sense (see ``chain``).
            TypeError: for a leaf that is not floating or complex, or that a rule has no meaning for.
        """
        return self._lifted.init(params)

    def update(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, updates: Any, state: ChainState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, ChainState]:
        """One step: updates to add to the parameters, in the dtypes of those that came in, and the next state.

        Args:
            updates: the gradients, or what a transformation before this one made of them. Of a complex leaf, the
                conjugate of what ``jax.grad`` gives.
            state: what ``init``, or the last ``update``, returned.
            params: the parameters; they may be left out if no rule reads them.
            **extra_args: passed on to optax transformations in the chain; the rules of gradtx read none.

        Raises:
            ValueError: if trees or shapes differ, the state is another chain's, or params are needed and missing.
            TypeError: for a leaf that is not floating or complex, or that is complex in one and real in the other.
        """
        return self._lifted.update(updates, state, params, extra_args)

    def _step(self, params: Any, grads: Any, state: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        """Parameters and state after one step: what the function ``step`` does."""
        return self._lifted.update(grads, state, params, extra, apply=True)

    def _key(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()  # pyright: ignore[reportAttributeAccessIssue]

    def __ne__(self, other: object) -> bool:  # tuple has its own
        return not self == other

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def _repr_markdown_(self) -> str:
        named = zip(self.names, self.rules, strict=True)
        rows = [f"| `{name}` | {_mathematics(rule.equation)} |" for name, rule in named]
        return "\n".join(["| rule | per step |", "|---|---|", *rows])


def _mathematics(latex: str) -> str:
    """An equation for a cell of a table in a notebook, where a bar would end the cell."""
    latex = " ".join(latex.replace(r"\|", r"\Vert ").replace("|", r"\vert ").split())
    return f"${latex}$" if latex else ""


def _unfilled(cls: type[Transformation]) -> Transformation:
    """A transformation whose attributes are still to be set."""
    return cls.__new__(cls)


def hyper(
    *positional: NoReturn,
    default: Any = dataclasses.MISSING,
    low: float | None = None,
    below: float | None = None,
    high: float | None = None,
) -> Any:
    """A numeric hyperparameter of a rule, as a dataclass field (see ``Rule`` for an example).

    It lives in the state, and ``tick`` gets this step's value.

    Args:
        default: what it is if not given; with None it may be None, and is then no hyperparameter.
        low: numbers below are refused with a ValueError.
        below: numbers that are not below are refused with a ValueError. With ``below=1``, as for a decay β, ``tick``
            gets 1 − β too, with all its digits, as ``h.decay_complement``.
        high: numbers above are refused with a ValueError.

    NaN is refused as well. All ways in keep to the limits: the constructor, ``set_hyperparams``, ``sweep``, and what a
    schedule returns. Under ``jit`` the values of schedules and arrays are not known, and not checked.
    """
    if positional:
        raise TypeError(
            f"gradtx: hyper takes its default by name, as type checkers want it: hyper(default={positional[0]!r})"
        )
    return dataclasses.field(default=default, metadata={"hyper": Limits(low, below, high)})


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


def _floating_name(rule: str, dtype: Any) -> str:
    """The name of a dtype, which is a value that prints as it is written."""
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"{rule}: state_dtype must be a floating dtype, found {dtype!r}") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{rule}: state_dtype must be a floating dtype, found {dtype.name}")
    return dtype.name


@dataclass_transform(frozen_default=True, field_specifiers=(hyper, dataclasses.field))
class Value(Transformation):
    """A transformation that is a frozen dataclass: it compares by its fields, and prints as the call that makes it.

    Deriving makes the dataclass. (Not a decorator: mypy has none for what is also a NamedTuple, as optax's class is.)
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **kwargs: Any):
        try:
            dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        except (TypeError, ValueError) as error:
            raise declarations.unmade(cls, error) from None
        cls.__setattr__, cls.__delattr__ = Transformation.__setattr__, Transformation.__delattr__  # with words
        super().__init_subclass__(**kwargs)

    def _values(self) -> dict[str, Any]:
        fields = sorted(dataclasses.fields(self), key=lambda field: (field.kw_only, field.name in _COMMON))
        return {field.name: getattr(self, field.name) for field in fields}

    def _options(self) -> dict[str, bool]:
        """The keyword-only fields, which are shown only where they differ from their defaults; whether they do."""
        keywords = [field for field in dataclasses.fields(self) if field.kw_only]
        return {field.name: getattr(self, field.name) != field.default for field in keywords}

    def _key(self) -> tuple[Any, ...]:
        return tuple(map(value_of, self._values().values()))

    def __hash__(self) -> int:
        try:
            return super().__hash__()
        except TypeError:
            values = dict(zip(self._values(), self._key(), strict=False))  # a key may have more behind
            raise declarations.unhashable(self.label, values) from None

    def __repr__(self) -> str:
        options = self._options()
        given = {name: value for name, value in self._values().items() if options.get(name, True)}
        return f"{type(self).__name__}({', '.join(f'{name}={show(value)}' for name, value in given.items())})"

    def __str__(self) -> str:
        options = self._options()
        given = [show(value, 6) for name, value in self._values().items() if name not in options and value is not None]
        given += [
            f"{name}={show(self._values()[name], 6)}"
            for name, shown in options.items()
            if shown and name not in _COMMON
        ]
        where = self._values().get("where")
        at = "" if where is None else f" where {show(where)}"
        return f"{self._values().get('name') or self.label}({', '.join(given)}){at}"


class Rule(Value, Maths):
    """An elementary rule, as a class to derive from: fields are its hyperparameters, methods its mathematics.

    Deriving makes a frozen dataclass. A rule by itself is an optax transformation, and a chain of one. Methods are
    compiled, outside of ``jit`` too: a global that one reads stays as it was when it was compiled. What changes is a
    hyperparameter (a schedule is called in each step), a slot, or a scalar.

    Args:
        name: what the rule is called in the state; None: by its class.
        state_dtype: the floating dtype its slots are kept in; None: the parameters' own, float32 at least.
            Arithmetic is in float32 or wider all the same. In 8 bits of mantissa or fewer, an average with a decay
            near 1 can stall. Complex slots stay as they are.
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
    state_dtype: str | None = dataclasses.field(default=None, kw_only=True)
    where: Any = dataclasses.field(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any):
        declarations.check_body(cls)
        super().__init_subclass__(**kwargs)
        declarations.check_class(cls, Rule, Hyper)

    def __post_init__(self):
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ValueError(f"{self.label}: name must be a non-empty string, found {self.name!r}")
        if self.state_dtype is not None:
            object.__setattr__(self, "state_dtype", _floating_name(self.label, self.state_dtype))
        if self.where is not None:
            object.__setattr__(self, "where", selector(self.where))
        for field in dataclasses.fields(self):
            if "hyper" in field.metadata:
                object.__setattr__(self, field.name, _checked(self.label, field, getattr(self, field.name)))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rule itself."""
        return (self,)

    @functools.cached_property
    def _lifted(self) -> Lifted:
        return Lifted((copy.copy(self),))  # a rule that held itself would be a circle

    def hyperparameters(self) -> dict[str, Any]:
        """The fields declared with ``hyper`` that are not None."""
        fields = [field.name for field in dataclasses.fields(self) if "hyper" in field.metadata]
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    def limits(self) -> dict[str, Limits]:
        """Those that the fields were declared with."""
        return {field.name: field.metadata["hyper"] for field in dataclasses.fields(self) if "hyper" in field.metadata}

    def source(self) -> Any:
        """The code of its methods, and whether they read its hyperparameters from the rule itself."""
        return code_of(type(self), Rule), reads_itself(type(self))

    def blank(self) -> Rule:
        """The rule with blanks for its hyperparameters, and with nothing said of where."""
        kind = type(self)
        fields = {name: value for name, value in vars(self).items() if name != "_lifted"} | {"where": None}
        if not reads_itself(kind):
            for name, value in self.hyperparameters().items():
                fields[name] = BlankSchedule(kind, name) if callable(value) else Blank(kind, name)
        made: Any = _unfilled(kind)
        vars(made).update(fields, _source=self.source())
        return made

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), vars(self).get("_source"))

    def upcoming(self, name: str, h: Named, count: jax.Array) -> jax.Array:
        """A hyperparameter's value in the next step: its schedule's, or as it is now."""
        own, now = name.removesuffix("_complement"), getattr(h, name)
        schedule = getattr(self, own)
        if type(schedule) is BlankSchedule:
            if name not in h.ahead:
                raise LooksAhead(type(self), own)
            return h.ahead[name]
        if not callable(schedule):
            return now
        upcoming: Any = scheduled(schedule, jnp.asarray(optax.safe_increment(count)), f"{self.label}.{own}")
        value, residual = split(upcoming, now.dtype)
        return value if own == name else (1 - value) - residual


_COMMON = ("name", "state_dtype", "where")  # fields that every rule has; shown only where they are given


def show(value: Any, digits: int | None = None) -> str:
    """A field's value as in the call that makes it; in angle brackets what cannot be written down."""
    if is_blank(value):
        return repr(value)
    if isinstance(value, optax.GradientTransformation) and not isinstance(value, Transformation):
        return f"<optax {made_by(value.update)}>"
    if callable(value) and not isinstance(value, tuple):
        return f"<function {made_by(value)}>"
    return f"{value:.{digits}g}" if digits and isinstance(value, float) else repr(value)


def made_by(function: Any) -> str:
    """The name of a function, or of the function that made it."""
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
