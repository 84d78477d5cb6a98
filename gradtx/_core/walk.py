"""Looking into a state: one way into any nesting of wrappers, of gradtx, optax, and the frameworks around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.tree_util import keystr, tree_flatten_with_path

Keys = tuple[Any, ...]
"""The keys from the root of a tree to a part of it, as ``jax.tree_util`` has them."""

Kinds = type | tuple[type, ...]


def walk(tree: Any, kinds: Kinds, within: bool = True) -> Iterator[tuple[Keys, Any]]:
    """Each state of some kinds in a tree, whatever it stands in, with the keys that lead to it; the outer ones first.

    Args:
        tree: any pytree: a state of a wrapper, of an optax chain, a Flax ``TrainState``, an NNX ``Optimizer``.
        kinds: the types to look for.
        within: whether to look into what was found as well.
    """
    if isinstance(tree, kinds):
        yield (), tree
        if not within:
            return
    for keys, node in tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree and isinstance(x, kinds))[0]:
        if node is not tree and isinstance(node, kinds):
            yield from ((keys + more, inner) for more, inner in walk(node, kinds, within))


def holds_state(tree: Any, kinds: Kinds) -> bool:
    """True for a state, where gradients or parameters are expected: a tuple that one of these kinds is in."""
    return isinstance(tree, tuple) and next(walk(tree, kinds), None) is not None


def rebuilt(tree: Any, kinds: Kinds, change: Callable[..., Any], *others: Any) -> Any:
    """The tree with the outermost states of some kinds changed, beside what other trees have in their places."""

    def one(x: Any, *beside: Any) -> Any:
        return change(x, *beside) if isinstance(x, kinds) else x

    return jax.tree.map(one, tree, *others, is_leaf=lambda x: isinstance(x, kinds))


def word(key: Any) -> str:
    """A key of a path in words."""
    return keystr((key,), simple=True)


def words(keys: Keys) -> list[str]:
    """A path in words, without the fields that every state of a chain has."""
    return [found for found in map(word, keys) if found not in ("slots", "state", "hyperparams")]


def check_state(who: str, state: Any) -> None:
    """Refuses a transformation in place of its state, which has no arrays in it.

    Raises:
        TypeError: for such a one.
    """
    if isinstance(state, optax.GradientTransformation):
        raise TypeError(f"{who}: state is a transformation. Pass the state that its init or update returned.")
