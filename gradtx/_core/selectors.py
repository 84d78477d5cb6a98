"""Paths of leaves, and choosing leaves: by a regular expression on the path, a predicate, or a tree of booleans."""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr

Leaves = list[tuple[str, Any]]
"""(path, leaf) of each leaf; a path is the keys from the root, as in ``encoder/0/kernel``."""

_BOXED = GetAttrKey("value")  # the key of what a box holds, in Flax


def flatten_with_keys(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[tuple[Any, ...], Any]], Any]:
    """The keys from the root and the value of each leaf, and the structure.

    The box that Flax puts around a parameter, ``Variable`` or ``Partitioned``, is no level of the tree: it comes and
    goes while the parameter stays the same. It is known by its key ``value``, beside which it has no other.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    if not any(keys[-1:] == (_BOXED,) for keys, _ in leaves):
        return leaves, treedef
    with_none, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is None or (is_leaf is not None and is_leaf(x))
    )
    inside = Counter(keys[:i] for keys, _ in with_none for i in range(len(keys)))
    boxed = [keys[-1:] == (_BOXED,) and inside[keys[:-1]] == 1 for keys, _ in leaves]
    return [(keys[:-1] if box else keys, leaf) for (keys, leaf), box in zip(leaves, boxed, strict=True)], treedef


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a leaf in words, from its keys: as ``encoder/0/kernel``."""
    return keystr(keys, simple=True, separator="/")


def flatten_with_paths(tree: Any) -> tuple[Leaves, Any]:
    """The path and the value of each leaf, and the structure."""
    leaves, treedef = flatten_with_keys(tree)
    return [(path_of(keys), leaf) for keys, leaf in leaves], treedef


class Mask:
    """A tree of booleans as a value, which compares by what it holds."""

    def __init__(self, tree: Any):
        leaves, self.treedef = jax.tree.flatten(tree)
        for leaf in leaves:
            if not _is_boolean(leaf):
                raise TypeError(
                    "gradtx: leaves are chosen by a regular expression, a predicate of (path, leaf), a function of the "
                    f"tree, or a tree of True and False; found {leaf!r} in {tree!r}"
                )
        self.leaves = tuple(map(bool, leaves))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and (self.treedef, self.leaves) == (other.treedef, other.leaves)

    def __hash__(self) -> int:
        return hash((self.treedef, self.leaves))

    def __repr__(self) -> str:
        return _without_address(jax.tree.unflatten(self.treedef, self.leaves))


@dataclass(frozen=True)
class MaskOf:
    """A function that makes a mask of the tree, as optax takes it."""

    function: Callable[[Any], Any]

    def __repr__(self) -> str:
        return _without_address(self.function)


@dataclass(frozen=True)
class Not:
    """The leaves that a selector does not choose; it may choose none, or all."""

    select: Selector

    def __repr__(self) -> str:
        return f"not {_without_address(self.select)}"


def _without_address(value: object) -> str:
    """The repr without addresses: objects are elsewhere in each process, and this is the name of a partition's part."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


Select = str | Callable[[str, jax.ShapeDtypeStruct], bool] | object
"""The selectors that a user may give: a regular expression, a predicate, a tree of booleans, or a function that makes
one (an object: beside a second type of function, mypy would look into no predicate)."""

Selector = str | Callable[[str, Any], Any] | Mask | MaskOf | Not | tuple["Selector", ...]
"""A regular expression to search for in the path, a predicate, a mask, or what is none of one; or several, which must
all agree."""


def path(*keys: object) -> str:
    """The regular expression, for ``where`` and the like, of whole keys from the root: one leaf, or all below a key.

    ``where("layers/1", ...)`` is a search, and finds ``layers/10/kernel`` and ``old_layers/1`` too;
    ``where(path("layers", 1), ...)`` does not.

    Args:
        *keys: the first keys of the path; one may hold slashes, for several.

    >>> import gradtx
    >>> gradtx.path("layers", 1)
    '^layers/1(/|$)'
    """
    return f"^{re.escape('/'.join(map(str, keys)))}(/|$)"


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
    if isinstance(select, Mask | MaskOf | Not):
        return select
    if (
        isinstance(select, tuple)
        and select
        and all(isinstance(part, str | Mask | MaskOf | Not) or _asks(part) for part in select)
    ):
        return tuple(map(selector, select))
    return _function(select) if _asks(select) else Mask(select)


def _asks(select: Any) -> TypeGuard[Callable[..., Any]]:
    """True if a selector is there to be called; a callable pytree with leaves, as a module is, is a tree."""
    return callable(select) and (isinstance(select, functools.partial) or not _is_tree(select))


def _is_tree(select: Any) -> bool:
    return bool(jax.tree.leaves(select)) and not jax.tree_util.all_leaves([select])


def _function(select: Callable[..., Any]) -> Selector:
    """A predicate of path and leaf, or with one argument a function of the tree."""
    try:
        signature = inspect.signature(select)
    except (TypeError, ValueError):  # of some builtins
        return select
    for arguments, as_selector in ((("path", "leaf"), select), (("tree",), MaskOf(select))):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return as_selector
    raise TypeError(
        "gradtx: a function that chooses leaves takes (path, leaf) and returns True or False, or takes the tree and "
        f"returns a tree of them; {select!r} takes {signature}"
    )


def asks(select: Selector | None) -> bool:
    """True if a function of the user's is asked, whose answers may change."""
    if isinstance(select, Not):
        return asks(select.select)
    if isinstance(select, tuple):
        return any(map(asks, select))
    return not isinstance(select, str | Mask | None)


def chosen(select: Selector, leaves: Leaves, treedef: Any, what: str) -> list[bool]:
    """For each leaf, whether the selector chooses it.

    Raises:
        ValueError: if a regular expression chooses none of them, or a mask is not a tree like theirs, or a prefix of
            it. A predicate or a mask, which a program may have made for several trees, may choose none.
        TypeError: if a predicate returns no boolean.
    """
    patterns = [part for part in _each(select) if isinstance(part, str)]
    if leaves and patterns and not any(_chosen(tuple(patterns), leaves, treedef, what)):
        raise ValueError(f"gradtx: {what}, {select!r}, chooses no leaf. The leaves are: {listing(leaves)}.")
    return _chosen(select, leaves, treedef, what)


def _each(select: Selector) -> list[Selector]:
    """A selector, or those of which it is made, which must all agree."""
    return [part for parts in select for part in _each(parts)] if isinstance(select, tuple) else [select]


def _chosen(select: Selector, leaves: Leaves, treedef: Any, what: str) -> list[bool]:
    if isinstance(select, tuple):
        return [
            all(answers) for answers in zip(*(_chosen(part, leaves, treedef, what) for part in select), strict=True)
        ]
    if isinstance(select, Not):
        return [not answer for answer in _chosen(select.select, leaves, treedef, what)]
    if isinstance(select, MaskOf):
        select = Mask(select.function(treedef.unflatten([leaf for _, leaf in leaves])))
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
    chooses = [False] * number
    for value, subtree in zip(mask.leaves, subtrees, strict=True):
        for i in jax.tree.leaves(subtree):
            chooses[i] = value
    return chooses


def _asked(predicate: Callable[[str, Any], Any], path: str, leaf: Any, what: str) -> bool:
    is_array = hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)
    abstract = jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) if is_array else leaf
    answer = predicate(path, abstract)
    if not _is_boolean(answer):
        raise TypeError(f"gradtx: {what}: the predicate must return True or False, and returned {answer!r} for {path}")
    return bool(answer)


def within_keys(pattern: Selector, path: str) -> bool:
    """True if a regular expression is found in this path, and begins or ends in the middle of a key."""
    match = re.search(pattern, path) if isinstance(pattern, str) else None
    if match is None or match.start() == match.end():
        return False
    before, after = path[: match.start()][-1:], path[match.end() :][:1]
    return match[0][-1] != "/" != (after or "/") or match[0][0] != "/" != (before or "/")


def _is_boolean(value: Any) -> bool:
    """True for True and False, also as arrays, whose values are known."""
    if isinstance(value, bool | np.bool_):
        return True
    array = isinstance(value, np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer)
    return array and value.shape == () and value.dtype == bool


def listing(leaves: Sequence[tuple[str, Any]], most: int = 20) -> str:
    """The paths in words, at most so many of them."""
    paths = [repr(path) for path, _ in leaves]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
