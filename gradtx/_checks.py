"""Refusing wrong use at trace time: which rule, which leaf, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradtx._maths import Maths
from gradtx._numerics import is_complex, is_inexact
from gradtx._state import ChainState

Leaves = list[tuple[str, Any]]


class Layout(NamedTuple):
    """The keys of a chain's state, and of each slot its kind.

    Kinds: "leaf" (like the parameters), "real leaf" (real also for complex ones), "scalar", "whole" (any tree).
    """

    hyperparams: dict[str, dict[str, str]]
    slots: dict[str, dict[str, str]]

    def leaf_slots(self, rule: str) -> list[str]:
        """The slots of a rule that hold one array per leaf."""
        return [slot for slot, kind in self.slots.get(rule, {}).items() if kind.endswith("leaf")]


def named_leaves(tree: Any, what: str, rules: Sequence[Maths], names: Sequence[str]) -> tuple[Leaves, Any]:
    """The leaves with their paths, and the structure; refuses leaves that cannot be optimised."""
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [(jax.tree_util.keystr(path) or "(the only leaf)", leaf) for path, leaf in with_paths]
    real_only = [name for rule, name in zip(rules, names, strict=True) if rule.real_only]
    for path, leaf in leaves:
        dtype = _dtype(leaf)
        if dtype is None:
            raise TypeError(
                f"gradtx: leaf {path} of the {what} is a {type(leaf).__name__}, not an array of floating or complex "
                "numbers. Filter such leaves out (None in their place is fine), or convert them."
            )
        if not is_inexact(dtype):
            raise TypeError(
                f"gradtx: leaf {path} of the {what} has dtype {dtype}; only floating and complex leaves can be "
                "optimised. Convert it, or filter it out (None in its place is fine)."
            )
        if is_complex(dtype) and real_only:
            raise TypeError(
                f"gradtx: rule {real_only[0]!r} has no meaning for complex numbers, and leaf {path} of the {what} has "
                f"dtype {dtype}. Leave the rule out, or hold real and imaginary part as two leaves."
            )
    return leaves, treedef


def _dtype(leaf: Any) -> jnp.dtype | None:
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def flatten_like(treedef: Any, leaves: Leaves, tree: Any, what: str, like: str) -> list[Any]:
    """The leaves of a tree that must have the structure and the shapes of another."""
    try:
        others = treedef.flatten_up_to(tree)
    except ValueError:
        others = None
    if others is None or jax.tree.structure(tree) != treedef:
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        raise ValueError(
            f"gradtx: the {what} and the {like} are different trees{_difference(paths, [p for p, _ in leaves])}.\n"
            f"  {what}: {jax.tree.structure(tree)}\n  {like}: {treedef}"
        )
    for (path, leaf), other in zip(leaves, others, strict=True):
        if jnp.shape(other) != jnp.shape(leaf):
            raise ValueError(
                f"gradtx: leaf {path}: the {what} have shape {jnp.shape(other)}, the {like} {jnp.shape(leaf)}. "
                "They must be equal: nothing is broadcast."
            )
    return others


def _difference(found: Iterable[str], expected: Iterable[str]) -> str:
    found, expected = set(found), set(expected)
    parts = [
        f"{verb} {', '.join(sorted(paths)[:5])}{' and more' if len(paths) > 5 else ''}"
        for verb, paths in (("missing", expected - found), ("unexpected", found - expected))
        if paths
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def check_params(
    params: Any, treedef: Any, updates: Leaves, rules: Sequence[Maths], names: Sequence[str]
) -> list[Any] | None:
    """The parameters' leaves, in the order of the updates', or None if there are none and no rule reads them."""
    if params is None:
        for rule, name in zip(rules, names, strict=True):
            if rule.needs_params and updates:
                raise ValueError(f"gradtx: rule {name!r} reads the parameters: call update(updates, state, params).")
        return None
    others = flatten_like(treedef, updates, params, "parameters", "updates")
    named_leaves(params, "parameters", rules, names)
    check_complex(updates, others)
    return others


def check_complex(updates: Leaves, others: Sequence[Any], what: str = "parameter") -> None:
    """Real and complex do not mix: an imaginary part would be lost on the way in or out."""
    kinds = {False: "real", True: "complex"}
    for (path, update), other in zip(updates, others, strict=True):
        ours, theirs = (is_complex(jnp.result_type(x)) for x in (update, other))
        if ours != theirs:
            raise TypeError(
                f"gradtx: leaf {path}: the update is {kinds[ours]} ({jnp.result_type(update)}), the {what} is "
                f"{kinds[theirs]} ({jnp.result_type(other)}). Make the update {kinds[theirs]} where you compute it."
            )


def check_order(rules: Sequence[Maths], names: Sequence[str]) -> None:
    """A second moment needs one that makes it and one that uses it; some rules stand last."""
    maker = None
    for i, (rule, name) in enumerate(zip(rules, names, strict=True)):
        if rule.second_moment in ("edits", "uses") and maker is None:
            raise ValueError(
                f"gradtx: rule {name!r} (position {i} of the chain) needs a second moment, and no rule before it makes "
                "one. Put rms(), adagrad_sum() or monotone_rms() before it."
            )
        if rule.second_moment == "makes" and maker is not None:
            raise ValueError(
                f"gradtx: rule {name!r} (position {i} of the chain) replaces the second moment of {maker!r}, which "
                "nothing has used. Put a precondition() between them, or take one of them out."
            )
        if rule.second_moment is not None:
            maker = name if rule.second_moment != "uses" else None
        if rule.last and i != len(rules) - 1:
            raise ValueError(f"gradtx: rule {name!r} must be the last of its chain; {names[i + 1]!r} follows it.")
    if maker is not None:
        raise ValueError(
            f"gradtx: the second moment of rule {maker!r} is never used. Put precondition() after it, or take it out."
        )


def check_state(state: Any, layout: Layout, treedef: Any, updates: Leaves) -> None:
    """A state must come from this chain, for these parameters."""
    if not isinstance(state, ChainState):
        raise TypeError(
            f"gradtx: update needs the ChainState that init of this chain returned, found {type(state).__name__}. "
            "The arguments are update(updates, state, params)."
        )
    found = _keys("hyperparams", state.hyperparams) | _keys("slots", state.slots)
    expected = _keys("hyperparams", layout.hyperparams) | _keys("slots", layout.slots)
    if found != expected:
        raise ValueError(
            f"gradtx: this state was made by another chain{_difference(found, expected)}. Call init of this chain."
        )
    for rule, slots in layout.slots.items():
        for slot, kind in slots.items():
            if kind.endswith("leaf"):
                others = flatten_like(treedef, updates, state.slots[rule][slot], f"slots {rule}.{slot}", "updates")
                if kind == "leaf":
                    check_complex(updates, others, f"slot {rule}.{slot}")


def _keys(what: str, tree: Mapping[str, Iterable[str]]) -> set[str]:
    return {f"{what}[{rule!r}][{name!r}]" for rule, own in tree.items() for name in own}
