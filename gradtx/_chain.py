"""Rules in order: chain, and seal for what is to be one opaque rule."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import optax

from gradtx._core.contract import Trees
from gradtx._core.selectors import Select, Selector, selector
from gradtx._core.state import ChainState, PackedState
from gradtx._core.walk import holds_state
from gradtx._engine.layout import unique_names
from gradtx._engine.transformation import Transformation, check_transformation, made_by, run, run_inside, started
from gradtx.rules.base import Rule


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
    maps_trees = True

    tx: optax.GradientTransformation

    def __post_init__(self):
        super().__post_init__()
        check_transformation("seal", "tx", self.tx)

    @property
    def label(self) -> str:
        """The name of the optax function that made the transformation; ``seal`` for a gradtx chain."""
        if isinstance(self.tx, Transformation):
            return "seal" if isinstance(self.tx, Chain) else self.tx.label
        return made_by(self.tx.update)

    def __str__(self) -> str:
        inside = f"seal({self.tx})" if isinstance(self.tx, Transformation) else f"optax.{self.label}(...)"
        at = "" if self.where is None else f" where {self.where!r}"
        return (inside if self.name is None else f"{self.name}: {inside}") + at

    @property
    def takes_anything(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - it depends on tx
        """True of a transformation of gradtx, which says itself what it cannot do."""
        return isinstance(self.tx, Transformation)

    @property
    def takes_stored(self) -> bool:
        """True if the transformation rounds parameters itself."""
        return isinstance(self.tx, Transformation) and self.tx.takes_stored

    @property
    def needs_params(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - it depends on tx
        """True if the transformation rounds parameters itself: others say so where they miss them."""
        return self.takes_stored

    @property
    def last(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - it depends on tx
        """True if the transformation rounds parameters itself: a rule behind it would lead to others than those."""
        return self.takes_stored

    def init_tree(self, params: Any) -> Any:
        """The transformation's own state."""
        return started(self.tx, params)

    def apply_tree(self, trees: Trees, state: Any) -> tuple[Any, Any]:
        """The transformation's own update of the direction."""
        name = self.title
        return run_inside(self.tx, trees.direction, state, trees.params, trees.extra, apply_updates=False, name=name)


class Chain(Transformation[ChainState]):
    """Rules in order; what ``chain`` makes."""

    _rules: tuple[Rule, ...]

    def __init__(self, rules: tuple[Rule, ...]):
        object.__setattr__(self, "_rules", rules)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in order."""
        return self._rules

    def source(self) -> Any:
        """The code of the rules."""
        return tuple(rule.source() for rule in self._rules)

    def blank(self) -> Chain:
        """The chain of the blank rules."""
        return Chain(tuple(rule.blank() for rule in self._rules))

    @property
    def takes_stored(self) -> bool:
        """True if a rule of it sees parameters as they are stored."""
        return any(rule.takes_stored for rule in self._rules)

    def _key(self) -> tuple[Any, ...]:
        return self._rules

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self._rules))})"

    def __str__(self) -> str:
        return " → ".join(map(str, self._rules)) or "identity"


def chain(*rules: optax.GradientTransformation, name: str | None = None, state_dtype: Any = None) -> Chain:
    """An optimizer, or part of one: rules applied in order to a signal of three lanes.

    Args:
        *rules: rules, chains, or optax transformations (which see the direction; see ``seal``). Chains are flat:
            ``chain(a, chain(b, c))`` is ``chain(a, b, c)``. No rules: the identity.
        name: put before the name of each rule, as ``name.rule``.
        state_dtype: the format of the slots of every rule that does not say so itself (see ``Rule``). One word for a
            whole optimizer: ``chain(adam(1e-3), state_dtype="root8")``.

    The gradient phase: a clip or a weight decay in front of momentum and rms changes the gradient that they average.
    Behind them it changes only the direction, which becomes the step. The phase ends with the first rule that averages
    or sums gradients, and says so (``rule.accumulates``); from there on the gradient stays as it is.

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
        check_transformation("chain", f"argument {i}", rule)
        flat += cast("tuple[Rule, ...]", rule.rules) if isinstance(rule, Transformation) else [seal(rule)]
    if name is not None:
        flat = [dataclasses.replace(r, name=f"{name}.{own}") for r, own in zip(flat, unique_names(flat), strict=True)]
    if state_dtype is not None:
        unsaid = [r.holds_leaves and r.state_dtype is None for r in flat]
        flat = [dataclasses.replace(r, state_dtype=state_dtype) if x else r for r, x in zip(flat, unsaid, strict=True)]
    unique_names(flat)
    return Chain(tuple(flat))


def where(select: Select, *rules: optax.GradientTransformation) -> Chain:
    """Rules that act on some leaves only; to the others they do nothing, and hold no state for them.

    Args:
        select: which leaves. A regular expression, searched for in the leaf's path, which is the keys from the root
            with slashes between, as ``encoder/0/kernel`` (``^`` and ``$`` anchor it; ``layers/1`` is found in
            ``layers/10`` too, and ``path("layers", 1)`` is the expression for the whole key; the box that Flax puts
            around a parameter is no level); a predicate of that path and the leaf's shape and dtype (a
            ``jax.ShapeDtypeStruct``, of the updates in ``update``), which returns True or False; a tree of True and
            False like the parameters, or a prefix of it; or, as optax has it, a function of one argument that makes
            such a tree of the parameters, and in ``update`` of the updates. A pytree is a tree, also one that can be
            called, as modules of Equinox can.
        *rules: as in ``chain``; each of them is restricted.

    A rule that measures all leaves, as ``clip_by_global_norm``, measures those chosen; one that carries the weight of
    an average, as ``momentum``, does so for those only, and ``debias`` knows. Slots have None for the others. Inside
    another ``where`` both must choose a leaf.

    Raises:
        ValueError: for a regular expression that does not compile; in ``init``, for one that chooses no leaf (other
            selectors may, as a program makes them for several trees), if what is left for some leaf is a chain whose
            order makes no sense, or if one average would need different weights for different leaves.
        TypeError: if ``select`` is none of these.

    >>> import gradtx, jax.numpy as jnp
    >>> decay = gradtx.where("kernel", gradtx.add_decayed_weights(0.1))
    >>> tx, params = gradtx.chain(decay, gradtx.scale(-1.0)), {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    >>> updates, state = tx.update({"kernel": jnp.ones(1), "bias": jnp.ones(1)}, tx.init(params), params)
    >>> print(updates["kernel"], updates["bias"])
    [-1.1] [-1.]
    """
    ours = selector(select)
    return Chain(tuple(dataclasses.replace(rule, where=_both(rule.where, ours)) for rule in chain(*rules).rules))


def _both(one: Selector | None, other: Selector) -> Selector:
    return other if one is None else (one, other)


def step(tx: optax.GradientTransformation, params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
    """One step of training: ``update``, then ``optax.apply_updates``; new parameters and new state.

    It is one pass: the updates are added where they are computed, inside wrappers too, and never written out. Donate
    parameters and state to ``jax.jit`` (``donate_argnums``) to have both changed in place. Gradients of complex
    leaves are the conjugate of what ``jax.grad`` gives, as for ``update``.

    Raises:
        TypeError: for arguments in another order; otherwise as ``update``.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, params = gradtx.sgd(0.5), jnp.array([1.0, 2.0])
    >>> params, state = gradtx.step(tx, params, jnp.array([1.0, 1.0]), tx.init(params))
    >>> print(params)
    [0.5 1.5]
    """
    order = "The arguments are step(tx, params, grads, state)."
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"step: tx is no transformation, {type(tx).__name__}. {order}")
    for what, tree in {"params": params, "grads": grads}.items():
        if holds_state(tree, (ChainState, PackedState)):
            raise TypeError(f"step: {what} is a state, {type(tree).__name__}. {order}")
    return run(tx, grads, state, params, extra_args, apply_updates=True)
