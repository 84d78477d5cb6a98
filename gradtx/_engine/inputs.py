"""A tree taken apart, with the rules that act on each leaf: read and checked once in a call, and passed on whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._core import selectors
from gradtx._core.codecs import is_encoded
from gradtx._core.contract import AbstractRule
from gradtx._core.numerics import is_complex, is_inexact
from gradtx._core.selectors import Leaves, flatten_with_paths
from gradtx._engine.checks import difference, dtype_of

Mask = Sequence[Sequence[bool]]
"""For each rule, for each leaf, whether the rule acts on the leaf."""

Members = tuple[bool, ...]
"""For each rule, whether it acts on one leaf."""


@dataclass(frozen=True)
class FlatTree:
    """A tree taken apart.

    Attributes:
        named: the leaves with their paths.
        treedef: the structure.
        what: the tree, in messages: "updates" or "parameters".
    """

    named: Leaves
    treedef: Any
    what: str

    @classmethod
    def of(cls, tree: Any, what: str) -> FlatTree:
        """The tree taken apart, whatever its leaves are."""
        return FlatTree(*flatten_with_paths(tree), what)

    @property
    def leaves(self) -> list[Any]:
        """The leaves without their paths."""
        return [leaf for _, leaf in self.named]

    def unflatten(self, leaves: Any) -> Any:
        """A tree of this structure."""
        return self.treedef.unflatten(leaves)

    def checked(self) -> FlatTree:
        """The same; refuses leaves that cannot be optimised."""
        for path, leaf in self.named:
            check_number(path, leaf, self.what)
        return self

    def like(self, tree: Any, what: str, mask: Sequence[bool] | None = None) -> list[Any]:
        """The leaves of a tree that must have this structure and these shapes; None where the mask is False."""
        try:
            others = self.treedef.flatten_up_to(tree)
        except ValueError:
            others = None
        if others is not None and mask is not None:
            masked = [leaf if acts else None for leaf, acts in zip(self.leaves, mask, strict=True)]
            same = jax.tree.structure(tree, is_leaf=is_encoded) == jax.tree.structure(self.unflatten(masked))
        else:
            same = jax.tree.structure(tree, is_leaf=is_encoded) == self.treedef
        if others is None or not same:
            paths = [path for path, _ in flatten_with_paths(tree)[0]]
            expected = [path for i, (path, _) in enumerate(self.named) if mask is None or mask[i]]
            unfiltered = what == "parameters" and set(paths) > set(expected)
            hint = f" Filter the {what} as the {self.what} are: None in the same places." if unfiltered else ""
            raise ValueError(
                f"gradtx: the {what} and the {self.what} are different trees{difference(paths, expected)}.{hint}\n"
                f"  {what}: {jax.tree.structure(tree)}\n  {self.what}: {self.treedef}"
            )
        for (path, leaf), other in zip(self.named, others, strict=True):
            if other is not None and np.shape(other) != np.shape(leaf):
                raise ValueError(
                    f"gradtx: leaf {path!r}: the {what} have shape {np.shape(other)}, the {self.what} "
                    f"{np.shape(leaf)}. They must be equal: nothing is broadcast."
                )
        return others

    def check_complex(self, others: Sequence[Any], what: str) -> None:
        """Refuses real beside complex: an imaginary part would be lost on the way in or out."""
        for (path, update), other in zip(self.named, others, strict=True):
            if other is None:
                continue
            of_update, of_other = _field(update), _field(other)
            if of_update != of_other:
                raise TypeError(
                    f"gradtx: leaf {path!r}: the update is {of_update} ({jnp.result_type(update)}), the {what} is "
                    f"{of_other} ({jnp.result_type(other)}). Make the update {of_other} where you compute it."
                )


class Resting(NamedTuple):
    """A leaf that no rule for arrays acts on, or that a rule freezes: it may be no number, and have no gradient.

    Attributes:
        gradient: as it came in, None, float0, or an array of whatever dtype; or what a rule that maps whole trees made.
        frozen: whether a rule freezes it.
        computed: whether there are zeros in its place, as rules that act on it before it is frozen keep slots for it.
        members: per rule, whether the rule sees it as it is (see ``AbstractRule.takes_anything``).
    """

    gradient: Any
    frozen: bool
    computed: bool
    members: Members

    def update(self, param: Any) -> Any:
        """The update: of a frozen leaf zeros, in the parameter's dtype if there is no gradient."""
        if self.gradient is None or not self.frozen:
            return self.gradient
        if not has_no_gradient(self.gradient):
            return jnp.zeros_like(self.gradient)
        if param is None or jnp.issubdtype(param.dtype, jax.dtypes.extended):
            return self.gradient
        return jnp.zeros_like(param)


@dataclass(frozen=True)
class Inputs(FlatTree):
    """The updates or the parameters, taken apart, with what a chain does to each leaf.

    Attributes:
        rules, names: those of the chain.
        mask: see ``Mask``.
        resting: the leaves that rest, by position; rules that map whole trees write what they make of them there.
    """

    rules: Sequence[AbstractRule]
    names: Sequence[str]
    mask: Mask
    resting: dict[int, Resting] = field(compare=False)

    @functools.cached_property
    def groups(self) -> dict[Members, list[int]]:
        """The positions of the leaves, by the rules that act on them."""
        groups: dict[Members, list[int]] = {} if any(self.mask) else {(True,) * len(self.mask): []}
        for i, members in enumerate(zip(*self.mask, strict=True)):
            groups.setdefault(members, []).append(i)
        return groups

    def active(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves, of these, that do not rest."""
        return [x for i, x in enumerate(leaves) if i not in self.resting]

    def check_real(self) -> None:
        """Refuses complex numbers for a rule that has no meaning for them."""
        for rule, name, acts_on in zip(self.rules, self.names, self.mask, strict=True):
            for (path, leaf), acts in zip(self.named, acts_on, strict=True):
                if rule.real_only and acts and is_complex(jnp.result_type(leaf)):
                    raise TypeError(
                        f"gradtx: rule {name!r} has no meaning for complex numbers, and leaf {path!r} of the "
                        f"{self.what} has dtype {jnp.result_type(leaf)}. Leave the rule out there (see where), or "
                        "hold real and imaginary part as two leaves."
                    )

    def parameters(self, params: Any) -> list[Any] | None:
        """The parameters' leaves, in the order of the updates', or None if there are none and no rule reads them."""
        if params is None:
            for rule, name, acts_on in zip(self.rules, self.names, self.mask, strict=True):
                if rule.needs_params and any(acts_on):
                    raise ValueError(
                        f"gradtx: rule {name!r} reads the parameters: call update(updates, state, params)."
                    )
            return None
        others = self.like(params, "parameters")
        self.check_complex(others, "parameter")
        return others


def read(
    tree: Any,
    what: str,
    rules: Sequence[AbstractRule],
    names: Sequence[str],
    mask_of: Callable[[FlatTree], Mask],
    params: Any = None,
) -> Inputs:
    """A tree taken apart; a parameter without a gradient has zeros or itself in its place.

    Args:
        tree: the updates or the parameters.
        what: which of them.
        rules, names: those of the chain.
        mask_of: the mask for a tree.
        params: the parameters, if ``tree`` are the updates.

    Raises:
        TypeError, ValueError: for a leaf that is no array of numbers, or has no gradient, and is not frozen.
    """
    tree, given = filled(tree, params)
    flat = FlatTree.of(tree, what)
    others = leaves_like(flat.treedef, params)
    mask = [list(acts_on) for acts_on in mask_of(flat)]
    resting: dict[int, Resting] = {}
    for i, (path, leaf) in enumerate(flat.named):
        other = leaf if others is None else others[i]
        numeric = is_number(leaf) and is_number(other)
        gradient = given[i] if given else leaf
        if numeric and gradient is leaf:
            continue
        acting = [r for r, acts_on in enumerate(mask) if acts_on[i]]
        last = rules[acting[-1]] if acting else None
        if last is not None and not last.freezes and not last.takes_anything:
            name = next(names[r] for r in acting if not rules[r].freezes)
            check_gradient(path, gradient, name)
            check_number(path, leaf, what, name)
            check_number(path, other, "parameters", name)
        frozen = last is not None and last.freezes
        for rule, acts_on in () if numeric else zip(rules, mask, strict=True):
            acts_on[i] = acts_on[i] and rule.takes_anything and not frozen
        members = tuple(acts_on[i] and rule.takes_anything for rule, acts_on in zip(rules, mask, strict=True))
        resting[i] = Resting(gradient, frozen, numeric, members)
    return Inputs(flat.named, flat.treedef, what, rules, names, mask, resting)


def masks(where: Sequence[Any], names: Sequence[str], tree: FlatTree) -> list[list[bool]]:
    """The mask that the selectors of the rules make, None for a rule that acts everywhere."""
    everywhere = [True] * len(tree.named)
    return [
        everywhere if one is None else selectors.chosen(one, tree.named, tree.treedef, f"where of rule {name!r}")
        for one, name in zip(where, names, strict=True)
    ]


def filled(updates: Any, params: Any) -> tuple[Any, list[Any] | None]:
    """The updates with something in place of gradients that are not there; and the leaves as they came, if any are."""
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_encoded)
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
        leaves = None if tree is None else treedef.flatten_up_to(tree)
    except ValueError:
        return None
    return leaves if jax.tree_util.all_leaves(leaves or (), is_leaf=lambda x: x is None or is_encoded(x)) else None


# -- One leaf ---------------------------------------------------------------------------------------------------------


def is_number(leaf: Any) -> bool:
    """True if a leaf is an array of floating or complex numbers, or such a number."""
    dtype = dtype_of(leaf)
    return dtype is not None and is_inexact(dtype)


def has_no_gradient(gradient: Any) -> bool:
    """True if this stands for no gradient: None, or the float0 of ``jax.grad(..., allow_int=True)``."""
    return gradient is None or dtype_of(gradient) == jax.dtypes.float0


def check_number(path: str, leaf: Any, what: str, rule: str | None = None) -> None:
    """Refuses a leaf that cannot be optimised."""
    if is_number(leaf):
        return
    acts = "" if rule is None else f", and rule {rule!r} acts on it"
    dtype = dtype_of(leaf)
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


def check_gradient(path: str, gradient: Any, rule: str) -> None:
    """Refuses what stands for no gradient, of a leaf that a rule acts on."""
    if has_no_gradient(gradient):
        given = "no gradient (None)" if gradient is None else "the gradient of an integer (float0)"
        raise ValueError(
            f"gradtx: leaf {path!r} of the updates has {given}, and rule {rule!r} acts on it. Freeze the parameter "
            "(see freeze, partition), or filter the parameters as the updates are: None in the same places."
        )


def array_of(leaf: Any) -> jax.Array:
    """A leaf as an array of just the dtype it has, never a weak one."""
    if is_encoded(leaf) or (isinstance(leaf, jax.Array) and not leaf.weak_type):
        return leaf
    return jnp.asarray(leaf, jnp.result_type(leaf))


def _field(leaf: Any) -> str:
    dtype = dtype_of(leaf)
    return "complex" if dtype is not None and is_complex(dtype) else "real"
