"""Paths of leaves, and choosing leaves: by a regular expression on the path, a predicate, or a tree of booleans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr

Leaves = list[tuple[str, Any]]
"""(path, leaf) of each leaf; a path is the keys from the root, as in ``encoder/0/kernel``."""

_BOXED = GetAttrKey("value")  # the key of what a box holds, in Flax


def flatten_with_keys(tree: Any) -> tuple[list[tuple[tuple[Any, ...], Any]], Any]:
    """The keys from the root and the value of each leaf, and the structure.

    The box that Flax puts around a parameter, ``Variable`` or ``Partitioned``, is no level of the tree: it comes and
    goes while the parameter stays the same. It is known by its key ``value``, beside which it has no other.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    if not any(keys[-1:] == (_BOXED,) for keys, _ in leaves):
        return leaves, treedef
    with_none, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    inside = Counter(keys[:i] for keys, _ in with_none for i in range(len(keys)))
    boxed = [keys[-1:] == (_BOXED,) and inside[keys[:-1]] == 1 for keys, _ in leaves]
    return [(keys[:-1] if box else keys, leaf) for (keys, leaf), box in zip(leaves, boxed, strict=True)], treedef


def flatten_with_paths(tree: Any) -> tuple[Leaves, Any]:
    """The path and the value of each leaf, and the structure."""
    leaves, treedef = flatten_with_keys(tree)
    return [(keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in leaves], treedef


class Mask:
    """A tree of booleans as a value, which compares by what it holds."""

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree.flatten(tree)
        for leaf in leaves:
            if not isinstance(leaf, bool | np.bool_):
                raise TypeError(
                    "gradtx: leaves are chosen by a regular expression, a predicate of (path, leaf), or a tree of "
                    f"True and False; found {leaf!r} in {tree!r}"
                )
        self.leaves = tuple(map(bool, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and (self.treedef, self.leaves) == (other.treedef, other.leaves)

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __repr__(self) -> str:
        return repr(jax.tree.unflatten(self.treedef, self.leaves))


Select = str | Callable[[str, jax.ShapeDtypeStruct], bool] | object
"""What a user may give: a regular expression, a predicate, or a tree of booleans."""

Selector = str | Callable[[str, Any], Any] | Mask | tuple["Selector", ...]
"""A regular expression to search for in the path, a predicate, a mask; or several, which must all agree."""


def selector(select: Select) -> Selector:
    """A selector as a value; refuses what is none.

    Raises:
        ValueError: for a regular expression that does not compile.
        TypeError: for a tree with a leaf that is no boolean.
    """
    if isinstance(select, str):
        try:
            re.compile(select)
        except re.error as error:
            raise ValueError(f"gradtx: {select!r} is no regular expression: {error}") from None
        return select
    if isinstance(select, tuple) and select and all(isinstance(one, str | Mask) or callable(one) for one in select):
        return tuple(map(selector, select))
    return select if callable(select) or isinstance(select, Mask) else Mask(select)


def chosen(select: Selector, leaves: Leaves, treedef: Any, what: str) -> list[bool]:
    """For each leaf, whether the selector chooses it.

    Raises:
        ValueError: if it chooses none of them, or a mask is not a tree like theirs, or a prefix of it.
        TypeError: if a predicate returns no boolean.
    """
    found = _chosen(select, leaves, treedef, what)
    if leaves and not any(found):
        raise ValueError(f"gradtx: {what}, {select!r}, chooses no leaf. The leaves are: {listing(leaves)}.")
    return found


def _chosen(select: Selector, leaves: Leaves, treedef: Any, what: str) -> list[bool]:
    if isinstance(select, tuple):
        return [all(answers) for answers in zip(*(_chosen(one, leaves, treedef, what) for one in select), strict=True)]
    if isinstance(select, Mask):
        return _unmasked(select, len(leaves), treedef, what)
    if isinstance(select, str):
        return [re.search(select, path) is not None for path, _ in leaves]
    return [_asked(select, path, leaf, what) for path, leaf in leaves]


def _unmasked(mask: Mask, number: int, treedef: Any, what: str) -> list[bool]:
    if not number:
        return []
    try:
        subtrees = mask.treedef.flatten_up_to(treedef.unflatten(range(number)))
    except ValueError as error:
        raise ValueError(f"gradtx: the mask of {what} is not a tree like the parameters: {error}") from None
    found = [False] * number
    for value, subtree in zip(mask.leaves, subtrees, strict=True):
        for i in jax.tree.leaves(subtree):
            found[i] = value
    return found


def _asked(predicate: Callable[[str, Any], Any], path: str, leaf: Any, what: str) -> bool:
    abstract = jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    answer = predicate(path, abstract)
    if not isinstance(answer, bool | np.bool_):
        raise TypeError(f"gradtx: {what}: the predicate must return True or False, and returned {answer!r} for {path}")
    return bool(answer)


def listing(leaves: Sequence[tuple[str, Any]], most: int = 20) -> str:
    """The paths in words, at most so many of them."""
    paths = [repr(path) for path, _ in leaves]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
