"""Runs of a transformation that several properties share, and facts about it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from gradtx._chain import Chain
from gradtx._engine.layout import Kind
from gradtx._engine.transformation import Transformation, value_of
from gradtx.rules.base import Rule
from gradtx.testing._examples import params

STEPS = 5


class Given(Chain):
    """A chain that gets the same extra arguments in every step, as the loss, whatever it is called with."""

    _extra: dict[str, Any]

    def __init__(self, rules: tuple[Rule, ...], extra: Mapping[str, Any]):
        super().__init__(rules)
        object.__setattr__(self, "_extra", dict(extra))

    def run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any], apply_updates: bool) -> Any:
        """A step with the extra arguments."""
        return super().run(updates, state, params, extra | self._extra, apply_updates)

    def remade(self, rules: tuple[Rule, ...]) -> Given:
        """A chain of other rules that gets them too."""
        return Given(rules, self._extra)

    def _key(self) -> tuple[Any, ...]:
        return self.rules, tuple((name, value_of(value)) for name, value in self._extra.items())

    def __repr__(self) -> str:
        return f"<{super().__repr__()} given {', '.join(self._extra)}>"


def remade(tx: Transformation[Any], made: Chain) -> Chain:
    """What was made of the rules of a transformation, with the extra arguments that this one gets."""
    return tx.remade(made.rules) if isinstance(tx, Given) else made


NOT_COMPLEX = "has no meaning for complex numbers"


# A transformation is a value: what is compiled for it here serves several properties.
@functools.partial(jax.jit, static_argnums=0)
def updated(tx: Transformation[Any], grads: Any, state: Any, params: Any) -> Any:
    """The updates and the state after a step."""
    return tx.update(grads, state, params)


@functools.partial(jax.jit, static_argnums=0)
def stepped(tx: Transformation[Any], params: Any) -> Any:
    """The last updates and state of a few steps under scan, which holds the state to its structure and dtypes."""

    def one(state: Any, _: None) -> Any:
        updates, state = tx.update(params, state, params)
        return state, updates

    state, updates = jax.lax.scan(one, tx.init(params), None, length=STEPS)
    return jax.tree.map(lambda x: x[-1], updates), state


def is_real_only(tx: Transformation[Any]) -> bool:
    """True if a transformation says that it is for real numbers alone."""
    try:
        jax.eval_shape(tx.init, params("complex64"))
    except TypeError as error:
        return NOT_COMPLEX in str(error)
    return False


def slots_of_arrays(tx: Transformation[Any], state: Any) -> Any:
    """Slots of rules that map one array at a time: what a rule that maps whole trees keeps is its own affair."""
    layout = tx._engine.layout.slots
    return {rule: slots for rule, slots in state.slots.items() if Kind.TREE not in layout[rule].values()}


def has_formats(tx: Transformation[Any]) -> bool:
    """True if a rule says what its slots are stored in."""
    return any(rule.state_dtype is not None for rule in tx.rules)
