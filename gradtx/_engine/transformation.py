"""A transformation made of rules, as a value that is an optax transformation."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, ClassVar, Generic, TypeVar, cast, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core import declarations
from gradtx._core.blank import is_blank, value_of
from gradtx._core.contract import AbstractRule
from gradtx._core.control import Once, either
from gradtx._core.mesh import like_parameters, puts_constants
from gradtx._core.numerics import widened
from gradtx._core.selectors import Leaves
from gradtx._engine.checks import check_on_device
from gradtx._engine.eager import stepped
from gradtx._engine.engine import Engine, applied
from gradtx._engine.execute import Measured
from gradtx._engine.inputs import FlatTree, has_no_gradient
from gradtx._engine.layout import have_values
from gradtx._engine.scalars import NOTHING, Ahead

State = TypeVar("State")


class Transformation(optax.GradientTransformationExtraArgs, Generic[State]):
    """A transformation made of rules: an optax transformation that runs its ``rules`` in order.

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
        raise TypeError(
            f"gradtx: a {cls.__name__} cannot be made of init and update: call {cls.__name__}(...), or chain(...)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # For copy and pickle: by default the old protocols take the tuple along, and its functions have no names.
        return unfilled, (type(self),), {name: value for name, value in vars(self).items() if name != "_engine"}

    @property
    def label(self) -> str:
        """The name where the user gives none."""
        return type(self).__name__

    @property
    def rules(self) -> tuple[AbstractRule, ...]:
        """The rules, in order."""
        raise NotImplementedError

    @property
    def takes_stored(self) -> bool:
        """True if it, or one in it, sees parameters in the dtype that they are stored in, and rounds them itself."""
        return False

    @property
    def takes_flag(self) -> bool:
        """True if a guard around it needs no condition here, as it has a ``run_when``."""
        return self._engine.takes_flag

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine(self.rules)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each rule in the state, unique: as given, or its label, then label_1, label_2, ..."""
        return self._engine.names

    def blank(self) -> Transformation[Any]:
        """The same without the values of hyperparameters, if it is made of rules alone: one for all values."""
        return self

    def source(self) -> Any:
        """The code of its rules, if it is made of rules alone."""
        return None

    def acts_on(self, leaves: Leaves, treedef: Any) -> list[list[bool]]:
        """For each rule, for each leaf, whether the rule acts on it (see ``where``).

        Raises:
            ValueError: for a rule that acts on none of them.
        """
        return [list(acts_on) for acts_on in self._engine.mask(FlatTree(leaves, treedef, "parameters"))]

    # Pyright ignores: optax declares init and update as fields of a tuple; here they are methods of the same signature.
    def init(self, params: Any) -> State:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state before the first step, for parameters of these shapes and dtypes.

        Raises:
            ValueError: if the order of the rules makes no sense (see ``chain``).
            TypeError: for a leaf that is not floating or complex, or that a rule has no meaning for.
        """
        return cast(State, self._engine.init(params))

    def update(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, updates: Any, state: State, params: Any = None, **extra_args: Any
    ) -> tuple[Any, State]:
        """One step: updates to add to the parameters, in the dtypes of those that came in, and the next state.

        Args:
            updates: the gradients, or what a transformation before this one made of them. Of a complex leaf, the
                conjugate of what ``jax.grad`` gives.
            state: what ``init``, or the last ``update``, returned.
            params: the parameters; they may be left out if no rule reads them.
            **extra_args: passed on to what reads them: rules that need the loss, as ``value=loss``, and optax
                transformations in the chain.

        Raises:
            ValueError: if trees or shapes differ, the state is another chain's, or params are needed and missing.
            TypeError: for a leaf that is not floating or complex, or that is complex in one and real in the other.
        """
        return self.run(updates, state, params, extra_args, apply_updates=False)

    @puts_constants
    def run(
        self, updates: Any, state: State, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, State]:
        """One step, of which ``update`` and the function ``step`` are the two forms.

        Args:
            updates, state, params: as for ``update``.
            extra: the extra arguments of ``update``, by name.
            apply_updates: whether to return, in place of the updates, the parameters with the updates added.
        """
        return stepped(self._engine, lambda engine: engine, updates, state, params, extra, apply_updates)

    def run_when(
        self, when: Any, updates: Any, state: State, params: Any, extra: dict[str, Any], apply_updates: bool
    ) -> tuple[Any, State]:
        """``run`` where a flag is true; elsewhere nothing changes, and updates are 0. Only of what ``takes_flag``."""
        return stepped(self._engine, lambda engine: engine, updates, state, params, extra, apply_updates, when)

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


def unfilled(cls: type[Transformation[Any]]) -> Transformation[Any]:
    """A transformation whose attributes are still to be set."""
    return cls.__new__(cls)


_COMMON = ("name", "state_dtype", "where")  # fields that every rule has; shown only where they are given


class _Made(abc.ABCMeta):
    """A class that deriving makes a dataclass: the decorator would make it another, or fail without a word."""

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "__dataclass_params__" and name in vars(cls):
            raise TypeError(
                f"gradtx: class {cls.__name__!r}: deriving makes the dataclass. Take the decorator @dataclass away."
            )
        super().__setattr__(name, value)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
class Value(Transformation[State], metaclass=_Made):
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


def run(
    tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply_updates: bool
) -> tuple[Any, Any]:
    """One step of any transformation: ``Transformation.run``; of optax ``update``, then ``optax.apply_updates``."""
    if isinstance(tx, Transformation):
        return tx.run(updates, state, params, extra, apply_updates)
    updates, state = optax.with_extra_args_support(tx).update(updates, state, params, **extra)
    return (applied(params, updates) if apply_updates else updates), state


def run_inside(
    tx: optax.GradientTransformation,
    updates: Any,
    state: Any,
    params: Any,
    extra: dict[str, Any],
    apply_updates: bool,
    name: str | None = None,
    first: Measured | None = None,
    when: Any = True,
) -> tuple[Any, Any]:
    """``run`` of a transformation inside another one, held to the structure and the dtypes that it started with.

    Args:
        tx, updates, state, params, extra, apply_updates: as for ``run``.
        name: what it is called, for the error; None: by the function that made it.
        first: the measurement that the step begins with, if ``measured_first`` has given it.
        when: a scalar bool. Where it is false parameters and state stay as they are, and updates are 0. What takes no
            flag (``takes_flag``) has a condition around it.

    Raises:
        TypeError: if it changes the structure of its state, or a shape in it.
        ValueError: if it changes the structure or the shapes of the updates.
    """
    is_data = when is not True and takes_as_data(when, tx, updates, state, params)
    if when is not True and not is_data:
        step = Once(lambda g: run_inside(tx, g, state, params, extra, apply_updates, name, first), updates)
        return either(when, step, lambda: (unchanged(step, params, apply_updates), state))
    if isinstance(tx, Transformation):
        if first is not None:
            around: Any = functools.partial(_Begun, first=first)
            flag: Any = when if is_data else None
            after, state_after = stepped(tx._engine, around, updates, state, params, extra, apply_updates, flag)
        elif is_data:
            after, state_after = tx.run_when(when, updates, state, params, extra, apply_updates)
        else:
            after, state_after = tx.run(updates, state, params, extra, apply_updates)
    else:
        name = name or made_by(tx.update)
        check_on_device(f"slot {name}.state", state)
        after, state_after = run(tx, updates, state, params, extra, apply_updates=False)
        if jax.tree.structure(after) != jax.tree.structure(updates) or _shapes(after) != _shapes(updates):
            raise ValueError(f"gradtx: rule {name!r} changed the structure or the shapes of the updates")
        if jax.tree.structure(state_after) != jax.tree.structure(state) or _shapes(state_after) != _shapes(state):
            raise TypeError(f"gradtx: rule {name!r} changed the structure or the shapes of its state in an update")
        state_after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), state_after, state)
        after = applied(params, after) if apply_updates else after
    return jax.tree.map(strong, after), state_after


def takes_as_data(when: Any, tx: Any, updates: Any, state: Any, params: Any) -> bool:
    """True if a flag is data of a step, and not a condition around it."""
    takes = isinstance(tx, Transformation) and tx.takes_flag and isinstance(when, jax.core.Tracer)
    return takes and not have_values(jax.tree.leaves((updates, state, params)))


def unchanged(step: Once[tuple[Any, ...]], params: Any, apply_updates: bool) -> Any:
    """The result of a step that does not happen: the parameters as they are, or updates of zero.

    Args:
        step: the step that would give updates, or parameters, and then more.
        params: the parameters before it.
        apply_updates: whether it would give parameters.
    """
    return jax.tree.map(strong, params) if apply_updates else jax.tree.map(_zeros, step.types[0])


def _zeros(x: Any) -> Any:
    return np.zeros(x.shape, x.dtype) if has_no_gradient(x) else jnp.zeros(x.shape, x.dtype)


def measured_first(tx: optax.GradientTransformation, updates: Any, state: Any, params: Any) -> Measured | None:
    """The measurement of the updates that a step begins with, for who wants to know it before; see ``run_inside``.

    None of what begins with none, and outside of ``jit``, where a step is one program.
    """
    if not isinstance(tx, Transformation) or have_values(jax.tree.leaves((updates, state, params))):
        return None
    return tx._engine.measured_first(updates, state, params)


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A step whose first measurement is known."""

    engine: Engine
    first: Measured

    def run(
        self,
        updates: Any,
        state: Any,
        params: Any,
        extra: dict[str, Any],
        apply_updates: bool,
        ahead: Ahead = NOTHING,
        *,
        when: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        return self.engine.run(updates, state, params, extra, apply_updates, ahead, self.first, when=when)


def seen_by(tx: optax.GradientTransformation, params: Any) -> Any:
    """The parameters as a transformation sees them behind a wrapper that lifts gradients: in float32 at least."""
    takes_stored = isinstance(tx, Transformation) and tx.takes_stored
    return params if takes_stored else jax.tree.map(widened, params)


def strong(x: Any) -> Any:
    """A number, or an array of numbers, as an array with a dtype of its own; anything else as it is."""
    if has_no_gradient(x) or not (hasattr(x, "dtype") or isinstance(x, bool | int | float | complex)):
        return x
    return jnp.asarray(x, jnp.asarray(x).dtype)  # asking for the dtype takes a weak type away


def started(tx: optax.GradientTransformation, params: Any) -> Any:
    """The state of a transformation before the first step, in memory of its own, of arrays that keep their dtypes.

    States of optax may begin with the parameters themselves, or with arrays that the user gave, as a key.
    """
    state = tx.init(params)
    if isinstance(tx, Transformation):
        return state
    state = jax.tree.map(lambda x: strong(jnp.copy(x) if isinstance(x, jax.Array) else x), state)
    return like_parameters(state, params)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def check_transformation(who: str, name: str, tx: Any, otherwise: str = "") -> None:
    """Refuses an argument that is no transformation.

    Args:
        who, name: of which the argument is, and its name, for the error.
        tx: what was given.
        otherwise: what else it may be, for the error.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(tx, optax.GradientTransformation):
        hint = " (call it to make one)" if isinstance(tx, type) or callable(tx) else ""
        hint = " (give its members one by one: *rules)" if isinstance(tx, list | tuple) else hint
        raise TypeError(
            f"{who}: {name} must be a gradtx chain or rule, or an optax transformation{otherwise}, found {tx!r}{hint}"
        )
