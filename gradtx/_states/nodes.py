"""The nodes of a state, by path: leaves, and the states of others in their place."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gradtx._core.codecs import is_encoded
from gradtx._core.selectors import flatten_with_keys, path_of
from gradtx._wrappers.packed import PackedSlot


class Table(dict[str, Any]):
    """The nodes of trees by their paths, where no one tree has them."""


def nodes_of(tree: Any) -> list[tuple[str, Any]]:
    """Leaves, and states in their place, by path; those that are packed by the paths of their parts."""
    if isinstance(tree, Table):
        return list(tree.items())
    if isinstance(tree, PackedSlot):
        return list(tree.by_path().items())
    nodes = flatten_with_keys(tree, is_node(tree))[0]
    return [(path_of(keys), node) for keys, node in nodes]


def is_state(node: Any) -> bool:
    """True of a state: they are NamedTuples, in gradtx and in optax."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def is_node(tree: Any) -> Any:
    """A function that is True of a state in the tree, and of a slot in codes."""
    return lambda node: is_encoded(node) or (node is not tree and is_state(node))


def has_state(tree: Any) -> bool:
    """True if there is a state in a tree."""
    return any(is_state(node) for node in jax.tree.leaves(tree, is_leaf=is_state))


def are_same(x: Any, y: Any) -> bool:
    """True for equal arrays."""
    return not is_state(x) and not is_state(y) and np.array_equal(x, y)


def joined_path(*parts: str) -> str:
    """The path of its parts, those that are empty left out."""
    return "/".join(filter(None, parts))
