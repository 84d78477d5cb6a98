"""Wrong use refused at trace time: which rule, which leaf, what was found, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradtx._core.contract import AbstractRule
from gradtx._core.declarations import alternatives, those_of_gradtx
from gradtx._core.mesh import in_host_memory


def check_injected(what: str, value: Any) -> None:
    """Refuses a value that ``optax.inject_hyperparams`` gives: it builds a chain anew with each, and update reads none.

    Only the caller tells it from an array that a user gives once.
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


def dtype_of(leaf: Any) -> jnp.dtype | None:
    """The dtype of an array, also of an abstract one, or of a number; None for anything else."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def difference(names: Iterable[str], expected: Iterable[str]) -> str:
    """In parentheses, which names are missing and which are unexpected."""
    names, expected = set(names), set(expected)
    parts = [
        f"{verb} {', '.join(map(repr, sorted(paths)[:5]))}{' and more' if len(paths) > 5 else ''}"
        for verb, paths in (("missing", expected - names), ("unexpected", names - expected))
        if paths
    ]
    return f" ({'; '.join(parts)})" if parts else ""


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
    return alternatives(f"{name}()" for name in those_of_gradtx(says))


def check_counts(who: str, **counts: Any) -> None:
    """Counts in a state are integer scalars, as ``init`` made them."""
    for name, value in counts.items():
        check_kind(name, value, "integer", shape=(), who=who)


_KINDS = {"integer": jnp.integer, "floating": jnp.floating, "floating or complex": jnp.inexact}


def check_kind(what: str, value: Any, kind: str, shape: tuple[int, ...] | None = None, who: str = "gradtx") -> None:
    """Refuses a part of a state that another program, or a cast, made something else of."""
    dtype = dtype_of(value)
    if dtype is None or not jnp.issubdtype(dtype, _KINDS[kind]):
        is_instead = type(value).__name__ if dtype is None else f"of dtype {dtype}"
        raise TypeError(f"{who}: {what} of this state is {is_instead}, and must be {kind}, as init made it.")
    check_on_device(what, value, who)
    if shape is not None and jnp.shape(value) != shape:
        wanted = f"of shape {shape}" if shape else "a scalar"
        raise ValueError(f"{who}: {what} of this state has shape {jnp.shape(value)}, and must be {wanted}.")


def check_tree(what: str, tree: Any, expected: Any) -> None:
    """Refuses a tree in a state whose arrays are of other shapes, or no numbers where they were."""
    found, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if treedef != jax.tree.structure(expected):
        return  # who holds it says what is in it
    for (path, value), like in zip(found, jax.tree.leaves(expected), strict=True):
        for kind in ("integer", "floating or complex"):
            if jnp.issubdtype(like.dtype, _KINDS[kind]):
                check_kind(f"{what}{jax.tree_util.keystr(path)}", value, kind, like.shape)


def check_on_device(what: str, tree: Any, who: str = "gradtx") -> None:
    """Refuses a part of a state that is in the memory of the host."""
    if any(isinstance(x, jax.Array) and in_host_memory(x) for x in jax.tree.leaves(tree)):
        raise ValueError(
            f"{who}: {what} of this state is in the memory of the host, and a step computes on the device. Take the "
            "step of offload(tx), which moves slots to the device before it and back after it; or move the state "
            "once, by jax.device_put(state, jax.memory.Space.Device)."
        )
