"""Refusing wrong use at trace time: which rule, which leaf, what was found, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx._core.contract import AbstractRule
from gradtx._core.declarations import either, those_of_gradtx
from gradtx._core.numerics import is_complex, is_inexact, without_residuals
from gradtx._core.selectors import Leaves, flatten_with_paths
from gradtx._core.state import ChainState, PackedState

Chosen = Sequence[Sequence[bool]]
"""For each rule, for each leaf, whether the rule acts on the leaf."""


class Layout(NamedTuple):
    """The keys of a chain's state, and of each slot its kind.

    Kinds: "leaf" (like the parameters), "real leaf" (real also for complex ones), "scalar", "whole" (any tree).
    """

    names: tuple[str, ...]
    hyperparams: dict[str, dict[str, str]]
    slots: dict[str, dict[str, str]]

    def leaf_slots(self, rule: str) -> list[str]:
        """The slots of a rule that hold one array per leaf."""
        return [slot for slot, kind in self.slots.get(rule, {}).items() if kind.endswith("leaf")]


def named_leaves(tree: Any, what: str) -> tuple[Leaves, Any]:
    """The leaves with their paths, and the structure; refuses leaves that cannot be optimised."""
    leaves, treedef = flatten_with_paths(tree)
    for path, leaf in leaves:
        check_number(path, leaf, what)
    return leaves, treedef


def check_number(path: str, leaf: Any, what: str, rule: str | None = None) -> None:
    """Refuses a leaf that cannot be optimised."""
    if is_number(leaf):
        return
    acts = "" if rule is None else f", and rule {rule!r} acts on it"
    dtype = _dtype(leaf)
    if dtype is None:
        raise TypeError(
            f"gradtx: leaf {path!r} of the {what} is a {type(leaf).__name__}, not an array of floating or complex "
            f"numbers{acts}. Freeze it (see freeze, partition), filter it out (None in its place is fine), or convert "
            "it."
        )
    raise TypeError(
        f"gradtx: leaf {path!r} of the {what} has dtype {dtype}{acts}; only floating and complex leaves can be "
        "optimised. Freeze it (see freeze, partition), filter it out (None in its place is fine), or convert it."
    )


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array of floating or complex numbers, or such a number."""
    dtype = _dtype(leaf)
    return dtype is not None and is_inexact(dtype)


def has_no_gradient(gradient: Any) -> bool:
    """Whether this stands for no gradient: None, or the float0 of ``jax.grad(..., allow_int=True)``."""
    return gradient is None or _dtype(gradient) == jax.dtypes.float0


def filled(updates: Any, params: Any) -> tuple[Any, list[Any] | None]:
    """The updates with something in place of gradients that are not there; and the leaves as they came, if any are."""
    leaves, treedef = jax.tree.flatten(params)
    given = leaves_like(treedef, updates)
    if given is None or not any(map(has_no_gradient, given)):
        return updates, None

    def one(gradient: Any, param: Any) -> Any:
        if not has_no_gradient(gradient):
            return gradient
        return jnp.zeros_like(param) if is_number(param) else param

    return treedef.unflatten(map(one, given, leaves)), given


def leaves_like(treedef: Any, tree: Any) -> list[Any] | None:
    """The leaves of a tree that has this structure, None among them, or None if it has another."""
    try:
        found = None if tree is None else treedef.flatten_up_to(tree)
    except ValueError:
        return None
    return found if jax.tree_util.all_leaves(found or (), is_leaf=lambda x: x is None) else None


def check_gradient(path: str, gradient: Any, rule: str) -> None:
    """Refuses what stands for no gradient, of a leaf that a rule acts on."""
    if has_no_gradient(gradient):
        found = "no gradient (None)" if gradient is None else "the gradient of an integer (float0)"
        raise ValueError(
            f"gradtx: leaf {path!r} of the updates has {found}, and rule {rule!r} acts on it. Freeze the parameter "
            "(see freeze, partition), or filter the parameters as the updates are: None in the same places."
        )


def check_injected(what: str, value: Any) -> None:
    """Refuses a value that ``optax.inject_hyperparams`` gives: it builds a chain anew with each, and update reads none.

    Nothing but who calls tells it from an array that a user gives once.
    """
    frame = sys._getframe() if isinstance(value, jax.Array) else None
    while frame is not None:
        if frame.f_globals.get("__name__") == optax.inject_hyperparams.__module__:
            raise TypeError(
                f"{what} comes from optax.inject_hyperparams, which would do nothing: hyperparameters of gradtx are in "
                "its state already, and update reads them there. Take the chain itself: give it schedules, read with "
                "optax.tree.get, change with set_hyperparams."
            )
        frame = frame.f_back


def check_real(leaves: Leaves, chosen: Chosen, rules: Sequence[AbstractRule], names: Sequence[str], what: str) -> None:
    """Some rules have no meaning for complex numbers."""
    for rule, name, ours in zip(rules, names, chosen, strict=True):
        for (path, leaf), applies in zip(leaves, ours, strict=True):
            if rule.real_only and applies and is_complex(jnp.result_type(leaf)):
                raise TypeError(
                    f"gradtx: rule {name!r} has no meaning for complex numbers, and leaf {path!r} of the {what} has "
                    f"dtype {jnp.result_type(leaf)}. Leave the rule out there (see where), or hold real and imaginary "
                    "part as two leaves."
                )


def _dtype(leaf: Any) -> jnp.dtype | None:
    """The dtype of an array, also of an abstract one, or of a number; None for anything else."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def flatten_like(
    treedef: Any, leaves: Leaves, tree: Any, what: str, like: str, chosen: Sequence[bool] | None = None
) -> list[Any]:
    """The leaves of a tree that must have the structure and the shapes of another; None where not chosen."""
    try:
        others = treedef.flatten_up_to(tree)
    except ValueError:
        others = None
    if others is not None and chosen is not None:
        whole = [leaf if ours else None for (_, leaf), ours in zip(leaves, chosen, strict=True)]
        same = jax.tree.structure(tree) == jax.tree.structure(treedef.unflatten(whole))
    else:
        same = jax.tree.structure(tree) == treedef
    if others is None or not same:
        paths = [path for path, _ in flatten_with_paths(tree)[0]]
        expected = [path for i, (path, _) in enumerate(leaves) if chosen is None or chosen[i]]
        unfiltered = what == "parameters" and set(paths) > set(expected)
        hint = f" Filter the {what} as the {like} are: None in the same places." if unfiltered else ""
        raise ValueError(
            f"gradtx: the {what} and the {like} are different trees{difference(paths, expected)}.{hint}\n"
            f"  {what}: {jax.tree.structure(tree)}\n  {like}: {treedef}"
        )
    for (path, leaf), other in zip(leaves, others, strict=True):
        if other is not None and np.shape(other) != np.shape(leaf):
            raise ValueError(
                f"gradtx: leaf {path!r}: the {what} have shape {np.shape(other)}, the {like} {np.shape(leaf)}. "
                "They must be equal: nothing is broadcast."
            )
    return others


def difference(found: Iterable[str], expected: Iterable[str]) -> str:
    """In parentheses, which names are missing and which are unexpected."""
    found, expected = set(found), set(expected)
    parts = [
        f"{verb} {', '.join(map(repr, sorted(paths)[:5]))}{' and more' if len(paths) > 5 else ''}"
        for verb, paths in (("missing", expected - found), ("unexpected", found - expected))
        if paths
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def check_params(
    params: Any, treedef: Any, updates: Leaves, chosen: Chosen, rules: Sequence[AbstractRule], names: Sequence[str]
) -> list[Any] | None:
    """The parameters' leaves, in the order of the updates', or None if there are none and no rule reads them."""
    if params is None:
        for rule, name, ours in zip(rules, names, chosen, strict=True):
            if rule.needs_params and any(ours):
                raise ValueError(f"gradtx: rule {name!r} reads the parameters: call update(updates, state, params).")
        return None
    others = flatten_like(treedef, updates, params, "parameters", "updates")
    check_complex(updates, others)
    return others


def check_complex(updates: Leaves, others: Sequence[Any], what: str = "parameter") -> None:
    """Real and complex do not mix: an imaginary part would be lost on the way in or out."""
    for (path, update), other in zip(updates, others, strict=True):
        if other is None:
            continue
        ours, theirs = _kind(update), _kind(other)
        if ours != theirs:
            raise TypeError(
                f"gradtx: leaf {path!r}: the update is {ours} ({jnp.result_type(update)}), the {what} is {theirs} "
                f"({jnp.result_type(other)}). Make the update {theirs} where you compute it."
            )


def _kind(leaf: Any) -> str:
    dtype = _dtype(leaf)
    return "complex" if dtype is not None and is_complex(dtype) else "real"


def check_order(rules: Sequence[AbstractRule], names: Sequence[str], leaf: str = "") -> None:
    """A second moment needs one that makes it and one that uses it; some rules stand last.

    Args:
        rules: those that act on the same leaves.
        names: theirs.
        leaf: for the message, which leaf, if not all.
    """
    maker = None
    for i, (rule, name) in enumerate(zip(rules, names, strict=True)):
        if rule.second_moment in ("edits", "uses") and maker is None:
            raise ValueError(
                f"gradtx: rule {name!r} (position {i} of the chain{leaf}) needs a second moment, and no rule before it "
                f"makes one. Put one that does before it: {_called(lambda rule: rule.second_moment == 'makes')}."
            )
        if rule.second_moment == "makes" and maker is not None:
            raise ValueError(
                f"gradtx: rule {name!r} (position {i} of the chain{leaf}) replaces the second moment of {maker!r}, "
                "which nothing has used. Put a rule that uses it between them "
                f"({_called(lambda rule: rule.second_moment == 'uses')}), or take one of them out."
            )
        if rule.second_moment is not None:
            maker = name if rule.second_moment != "uses" else None
        if rule.last and i != len(rules) - 1:
            raise ValueError(f"gradtx: rule {name!r} must be the last of its chain{leaf}; {names[i + 1]!r} follows it.")
    if maker is not None:
        raise ValueError(
            f"gradtx: the second moment of rule {maker!r} is never used{leaf}. Put a rule that uses it behind it "
            f"({_called(lambda rule: rule.second_moment == 'uses')}), or take it out."
        )


def _called(says: Callable[[type[AbstractRule]], bool]) -> str:
    """The rules of gradtx that declare something, as they are called."""
    return either(f"{name}()" for name in those_of_gradtx(says))


def check_state(state: Any, layout: Layout, treedef: Any, updates: Leaves, chosen: Chosen) -> list[Any]:
    """The slots of each rule as {slot: one array per leaf}, of a state that comes from this chain, for these leaves."""
    if not isinstance(state, ChainState):
        hint = "unpack_state unpacks it." if isinstance(state, PackedState) else ""
        raise TypeError(
            f"gradtx: update needs the ChainState that init of this chain returned, found {type(state).__name__}. "
            f"{hint or 'The arguments are update(updates, state, params).'}"
        )
    named = {rule: without_residuals(own) for rule, own in state.hyperparams.items()}
    found = _keys("hyperparams", named) | _keys("slots", state.slots)
    expected = _keys("hyperparams", layout.hyperparams) | _keys("slots", layout.slots)
    if found != expected:
        raise ValueError(
            f"gradtx: this state was made by another chain{difference(found, expected)}. Call init of this chain."
        )
    check_counts("gradtx", count=state.count)
    for rule, own in state.hyperparams.items():
        for name, value in own.items():
            check_kind(f"hyperparameter {rule}.{name}", value, "floating")
    slots = []
    for name, ours in zip(layout.names, chosen, strict=True):
        own = {}
        for slot in layout.leaf_slots(name):
            what = f"slots {name}.{slot}"
            own[slot] = flatten_like(treedef, updates, state.slots[name][slot], what, "updates", ours)
            kind = "floating or complex" if layout.slots[name][slot] == "leaf" else "floating"
            for (path, _), value in zip(updates, own[slot], strict=True):
                if value is not None:
                    check_kind(f"slot {name}.{slot}, leaf {path!r},", value, kind)
            if kind != "floating":
                check_complex(updates, own[slot], f"slot {name}.{slot}")
        for slot, kind in layout.slots.get(name, {}).items():
            if kind == "scalar":
                check_kind(f"slot {name}.{slot}", state.slots[name][slot], "floating", shape=())
        slots.append(own)
    return slots


def check_counts(who: str, **counts: Any) -> None:
    """Counts in a state are integer scalars, as ``init`` made them."""
    for name, value in counts.items():
        check_kind(name, value, "integer", shape=(), who=who)


_KINDS = {"integer": jnp.integer, "floating": jnp.floating, "floating or complex": jnp.inexact}


def check_kind(what: str, value: Any, kind: str, shape: tuple[int, ...] | None = None, who: str = "gradtx") -> None:
    """Refuses a part of a state that another program, or a cast, made something else of."""
    dtype = _dtype(value)
    if dtype is None or not jnp.issubdtype(dtype, _KINDS[kind]):
        found = type(value).__name__ if dtype is None else f"of dtype {dtype}"
        raise TypeError(f"{who}: {what} of this state is {found}, and must be {kind}, as init made it.")
    if shape is not None and jnp.shape(value) != shape:
        raise ValueError(f"{who}: {what} of this state has shape {jnp.shape(value)}, and must be a scalar.")


def _keys(what: str, tree: Mapping[str, Iterable[str]]) -> set[str]:
    return {f"{what}.{rule}.{name}" for rule, own in tree.items() for name in own}
