"""Steps outside of ``jit``: one call of one program, where operations one by one would be a hundred."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import jax
import jax.core
import numpy as np

from gradtx._core.blank import Lesson, is_blank
from gradtx._core.contract import AbstractRule
from gradtx._core.numerics import without_residuals
from gradtx._core.state import ChainState, PackedState, knowing
from gradtx._engine.engine import Engine
from gradtx._engine.inputs import FlatTree, Mask, filled, masks
from gradtx._engine.layout import Layout
from gradtx._engine.scalars import NOTHING, Ahead, Scalars


class Stepper(Hashable, Protocol):
    """An object that takes a step of a chain, and whose value says all about how."""

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
        """Updates, or the parameters after the step, and the next state."""
        ...


class Blanks(Engine):
    """The engine of rules without the values of hyperparameters: equal for all chains that one program can run.

    Args:
        rules: made blank.
        names: of the rules in the state.
        layout: of the state.
        where: the selector of each rule.
        mask: the leaves that each of them acts on, where the selectors have been asked.
    """

    def __init__(
        self,
        rules: tuple[AbstractRule, ...],
        names: Sequence[str],
        layout: Layout,
        where: Sequence[Any],
        mask: Mask | None = None,
    ):
        self.rules, self.names, self.layout, self.state_type = rules, tuple(names), layout, ChainState
        self.scalars = Scalars(self.rules, self.names)
        self._where, self._mask = tuple(where), None if mask is None else tuple(map(tuple, mask))
        self._value = self.rules, self.names, self._where, self._mask
        self._hash = hash(self._value)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Blanks) and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash

    def check_trees(self, state: ChainState, updates: Any, params: Any) -> None:
        """Nothing: blank rules cannot begin, and their engine has done it."""

    def plain_rules(self) -> tuple[AbstractRule, ...]:
        """The rules themselves."""
        return self.rules

    def mask(self, tree: FlatTree) -> Mask:
        """For each rule, for each leaf, whether the rule acts on it."""
        return masks(self._where, self.names, tree) if self._mask is None else self._mask

    def acting_on(self, mask: Mask) -> Blanks:
        """The same for leaves that were chosen."""
        return Blanks(self.rules, self.names, self.layout, (), mask)


def blanks_of(engine: Engine) -> Blanks:
    """The blank rules of an engine, as they are written now."""
    rules = engine.plain_rules()
    if engine.blanks is None or engine.blanks.rules is not rules:
        engine.blanks = Blanks(rules, engine.names, engine.layout, [rule.where for rule in engine.rules])
    return engine.blanks


def is_one_program(engine: Engine, blanks: Blanks, updates: Any, state: Any, params: Any) -> bool:
    """True if a step outside of ``jit`` is one program, with hyperparameters as data."""
    if not isinstance(state, ChainState | PackedState):
        return False
    if not all(rule.pure or not rule.maps_trees for rule in engine.rules):
        return False
    if any(callable(x) and not is_blank(x) for rule in blanks.rules for x in rule.hyperparameters().values()):
        return False  # a rule that calls its schedule itself
    names = {rule: set(without_residuals(values)) for rule, values in state.hyperparams.items()}
    if names != {rule: set(values) for rule, values in engine.layout.hyperparams.items()}:
        return False
    return all(map(_has_value, jax.tree.leaves((updates, state, params))))


def _has_value(x: Any) -> bool:
    """True if it is an array of numbers, or a number, whose value is known."""
    if isinstance(x, jax.core.Tracer):
        return False
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "biufcV"
    return isinstance(x, jax.Array | bool | int | float | complex)


def stepped(
    engine: Engine,
    around: Callable[[Engine], Stepper],
    updates: Any,
    state: Any,
    params: Any,
    extra: dict[str, Any],
    apply_updates: bool,
    when: jax.Array | None = None,
) -> tuple[Any, Any]:
    """A step, again whenever it showed something about a class of rules.

    Args:
        engine: the rules.
        around: what takes the step with them.
        updates, state, params, extra, apply_updates: as for ``Stepper.run``.
        when: a flag, of a step that is traced: where it is false nothing changes.
    """
    while True:
        try:
            return _stepped(engine, around, updates, state, params, extra, apply_updates, when)
        except Lesson as lesson:
            lesson.learn()


def _stepped(
    engine: Engine, around: Any, updates: Any, state: Any, params: Any, extra: Any, apply_updates: bool, when: Any
) -> Any:
    blanks = blanks_of(engine)
    if when is not None:
        return around(engine).run(updates, state, params, extra, apply_updates, when=when)
    if not is_one_program(engine, blanks, updates, state, params):
        return around(engine).run(updates, state, params, extra, apply_updates)
    if engine.asks:
        blanks = blanks.acting_on(engine.mask(FlatTree.of(filled(updates, params)[0], "updates")))
    if isinstance(state, ChainState):
        engine.check_trees(state, updates, params)
    state, ahead = engine.scalars.now(state)
    out, after = _compiled(around(blanks), apply_updates, updates, state, params, ahead)
    kind: Any = ChainState if isinstance(after, ChainState) else PackedState
    return out, knowing(kind, engine.known)(*after)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    stepper: Stepper, apply_updates: bool, updates: Any, state: Any, params: Any, ahead: Ahead
) -> tuple[Any, Any]:
    return stepper.run(updates, state, params, {}, apply_updates, ahead)
