"""Rules and chains as users hold them: optax transformations that are values."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, dataclass_transform

import jax
import jax.core
import jax.numpy as jnp
import optax

from gradtx._lift import Lifted, unique_names
from gradtx._maths import Maths
from gradtx._state import ChainState

Hyper = float | jax.Array | Callable[[jax.Array], Any]
"""A numeric hyperparameter: a number, a scalar array (traced ones too), or a schedule of the count."""


class Transformation(optax.GradientTransformationExtraArgs):
    """Anything made of rules: an optax transformation that runs its ``rules`` in order.

    Two are equal if they are made of equal rules with equal hyperparameters (arrays and schedules are compared by
    identity), so one can be a static argument of ``jax.jit``. It is also a pytree without leaves, so it can be an
    ordinary argument as well.
    """

    def __new__(cls, *args: Any, **kwargs: Any):
        # optax's class is a tuple (init, update), and a tuple is filled before there is a self to refer to.
        del args, kwargs
        made: list[Any] = []
        made.append(tuple.__new__(cls, (lambda p: made[0].init(p), lambda *a, **k: made[0].update(*a, **k))))
        return made[0]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_static(cls)

    def __getnewargs__(self):  # copy and pickle: __new__ makes the tuple again
        return ()

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
            updates: the gradients, or what a transformation before this one made of them.
            state: what ``init``, or the last ``update``, returned.
            params: the parameters; they may be left out if no rule reads them.
            **extra_args: passed on to optax transformations in the chain; the rules of gradtx read none.

        Raises:
            ValueError: if trees or shapes differ, the state is another chain's, or params are needed and missing.
            TypeError: for a leaf that is not floating or complex, or complex updates of real parameters.
        """
        return self._lifted.update(updates, state, params, extra_args)

    def _key(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()  # pyright: ignore[reportAttributeAccessIssue]

    def __ne__(self, other: object) -> bool:  # tuple has its own
        return not self == other

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def _repr_markdown_(self) -> str:
        rows = [f"| `{name}` | ${rule.equation}$ |" for name, rule in zip(self.names, self.rules, strict=True)]
        return "\n".join(["| rule | per step |", "|---|---|", *rows])


def hyper(*, default: Any = dataclasses.MISSING, low: float | None = None, below: float | None = None) -> Any:
    """A numeric hyperparameter of a rule, as a dataclass field.

    It lives in the state; ``tick`` gets this step's value. Numbers outside ``low <= x < below`` are refused.
    """
    return dataclasses.field(default=default, metadata={"hyper": (low, below)})


def _checked(rule: str, name: str, value: Any, low: float | None, below: float | None) -> Any:
    """The hyperparameter as a float where its value is known; arrays under trace and schedules as they are."""
    if value is None or callable(value) or isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, bool | complex | str) or jnp.shape(value) != ():
        raise TypeError(f"{rule}: {name} must be a number, a scalar array or a schedule, found {value!r}")
    number = float(value)
    if math.isnan(number) or (low is not None and number < low) or (below is not None and number >= below):
        limits = [f"at least {low:g}"] * (low is not None) + [f"less than {below:g}"] * (below is not None)
        raise ValueError(f"{rule}: {name} must be {' and '.join(limits) or 'a number'}, found {number:g}")
    return number


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
@dataclass_transform(frozen_default=True, field_specifiers=(hyper, dataclasses.field))
class Rule(Maths, Transformation):
    """An elementary rule, as a class to derive from: fields are its hyperparameters, methods its mathematics.

    Deriving makes a frozen dataclass. A rule by itself is an optax transformation, and a chain of one.

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

    def __init_subclass__(cls, **kwargs: Any):
        dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        super().__init_subclass__(**kwargs)

    def __post_init__(self):
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ValueError(f"{self.label}: name must be a non-empty string, found {self.name!r}")
        for field in dataclasses.fields(self):
            if "hyper" in field.metadata:
                value = _checked(self.label, field.name, getattr(self, field.name), *field.metadata["hyper"])
                object.__setattr__(self, field.name, value)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rule itself."""
        return (self,)

    def hyperparameters(self) -> dict[str, Any]:
        """The fields declared with ``hyper`` that are not None."""
        fields = [field.name for field in dataclasses.fields(self) if "hyper" in field.metadata]
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    def upcoming(self, name: str, h: SimpleNamespace, count: jax.Array) -> jax.Array:
        """A hyperparameter's value in the next step: its schedule's, or as it is now."""
        value, now = getattr(self, name), getattr(h, name)
        return jnp.asarray(value(count + 1), now.dtype) if callable(value) else now

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _key(self) -> tuple[Any, ...]:
        return tuple(id(value) if isinstance(value, jax.Array) else value for value in self._values().values())

    def __repr__(self) -> str:
        given = {name: value for name, value in self._values().items() if name != "name" or value is not None}
        return f"{self.label}({', '.join(f'{name}={_show(value)}' for name, value in given.items())})"

    def __str__(self) -> str:
        given = [value for name, value in self._values().items() if name != "name" and value is not None]
        return f"{self.name or self.label}({', '.join(_show(value, digits=6) for value in given)})"


def _show(value: Any, digits: int | None = None) -> str:
    if callable(value) and not isinstance(value, tuple):
        return f"<schedule {getattr(value, '__qualname__', type(value).__name__).partition('.')[0]}>"
    return f"{value:.{digits}g}" if digits and isinstance(value, float) else repr(value)


class seal(Rule):
    """Any transformation as one opaque rule: it sees the direction, and the lanes begin anew inside it.

    Args:
        tx: a gradtx chain or rule, or any optax transformation. ``chain`` seals optax transformations by itself.

    In the gradient phase it maps the gradient too. It works in the dtype that the chain works in (float32 for
    bfloat16 leaves), parameters included, and gets the extra arguments of ``update``. Its state is the slot
    ``state``; after an update every array in it has the dtype it had before, so that it can be carried through
    ``lax.scan``.

    Inf and NaN: what the transformation does.

    Raises:
        TypeError: if ``tx`` is no transformation, or if it changes the structure of its state in an update.
        ValueError: if it changes the structure or the shapes of the updates.

    >>> import gradtx
    >>> gradtx.chain(gradtx.clip_by_norm(1.0), gradtx.seal(gradtx.chain(gradtx.trace(0.9), gradtx.scale(0.1))))
    chain(clip_by_norm(limit=1.0), seal(tx=chain(trace(decay=0.9, nesterov=False), scale(factor=0.1))))
    """

    equation = r"u \leftarrow \mathrm{tx}(u)"
    whole = True

    tx: optax.GradientTransformation

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.tx, optax.GradientTransformation):
            raise TypeError(f"seal: expected an optax transformation, found {self.tx!r}")

    @property
    def label(self) -> str:
        """The name of the optax function that made the transformation; ``seal`` for a gradtx chain."""
        if isinstance(self.tx, Transformation):
            return "seal"
        return getattr(self.tx.update, "__qualname__", "optax").partition(".")[0]

    def __repr__(self) -> str:
        name = "" if self.name is None else f", name={self.name!r}"
        tx = repr(self.tx) if isinstance(self.tx, Transformation) else f"<optax {self.label}>"
        return f"seal(tx={tx}{name})"

    def __str__(self) -> str:
        inside = f"seal({self.tx})" if isinstance(self.tx, Transformation) else f"optax.{self.label}(...)"
        return inside if self.name is None else f"{self.name}: {inside}"

    def init_tree(self, params: Any) -> Any:
        """The transformation's own state."""
        return self.tx.init(params)

    def apply_tree(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        """The transformation's own update, held to the structure and the dtypes it started with."""
        after, state_after = optax.with_extra_args_support(self.tx).update(updates, state, params, **extra)
        name = self.name or self.label
        if jax.tree.structure(after) != jax.tree.structure(updates) or _shapes(after) != _shapes(updates):
            raise ValueError(f"gradtx: rule {name!r} changed the structure or the shapes of the updates")
        if jax.tree.structure(state_after) != jax.tree.structure(state) or _shapes(state_after) != _shapes(state):
            raise TypeError(f"gradtx: rule {name!r} changed the structure or the shapes of its state in an update")
        return after, jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), state_after, state)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


class Chain(Transformation):
    """Rules in order; what ``chain`` makes."""

    _rules: tuple[Rule, ...]

    def __init__(self, rules: tuple[Rule, ...]):
        self._rules = rules

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in order."""
        return self._rules

    def _key(self) -> tuple[Any, ...]:
        return self._rules

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._rules))})"

    def __str__(self) -> str:
        return " → ".join(map(str, self._rules)) or "identity"


def chain(*rules: optax.GradientTransformation, name: str | None = None) -> Chain:
    """An optimizer, or part of one: rules applied in order to a signal of three lanes.

    Args:
        *rules: rules, chains, or optax transformations (which see the direction; see ``seal``). Chains are flat:
            ``chain(a, chain(b, c))`` is ``chain(a, b, c)``. No rules: the identity.
        name: put before the name of each rule, as ``name.rule``.

    The gradient phase: until the first rule that accumulates (momentum, trace, nesterov, rms, adagrad_sum,
    monotone_rms), the gradient and the direction are one lane, so that a clip or a weight decay at the front edits
    the gradient itself. From then on the gradient stays as it is, and such rules edit the direction.

    The order is checked when the chain is first used (``init``), so that half a chain can be named and reused: a
    second moment must be used by a later rule, and ``precondition`` needs one.

    Raises:
        TypeError: for an argument that is no transformation.
        ValueError: for two rules of the same given name.

    >>> import gradtx, jax.numpy as jnp
    >>> direction = gradtx.chain(gradtx.momentum(0.9), gradtx.rms(0.999), gradtx.debias(), gradtx.precondition())
    >>> adam = gradtx.chain(direction, gradtx.scale_by_learning_rate(0.1))
    >>> updates, state = adam.update(jnp.array([5.0, -2.0]), adam.init(jnp.zeros(2)))
    >>> print(updates)
    [-0.1  0.1]
    """
    flat: list[Rule] = []
    for i, rule in enumerate(rules):
        if isinstance(rule, Transformation):
            flat += rule.rules
        elif isinstance(rule, optax.GradientTransformation):
            flat.append(seal(rule))
        else:
            hint = " (call it to make a rule)" if isinstance(rule, type) or callable(rule) else ""
            raise TypeError(f"chain: argument {i} is {rule!r}{hint}, not a gradtx rule or an optax transformation")
    if name is not None:
        flat = [dataclasses.replace(r, name=f"{name}.{own}") for r, own in zip(flat, unique_names(flat), strict=True)]
    unique_names(flat)
    return Chain(tuple(flat))


def step(tx: optax.GradientTransformation, params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
    """One step of training: ``update``, then ``optax.apply_updates``; new parameters and new state.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.sgd(0.5), jnp.array([1.0, 2.0])
    >>> params, state = gradtx.step(tx, params, jnp.array([1.0, 1.0]), tx.init(params))
    >>> print(params)
    [0.5 1.5]
    """
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state
