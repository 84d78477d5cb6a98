"""Rules that see a leaf as a matrix, or as a stack of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradtx._core.limits import check_choice, integer
from gradtx._core.mesh import check_whole, unsplit
from gradtx._core.numerics import safe_divide
from gradtx._core.selectors import flatten_with_paths
from gradtx._engine.inside import Inside
from gradtx._engine.transformation import Transformation
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["as_matrices", "in_subspace", "orthogonalize", "scale_by_shape"]

Sides = tuple[int | Sequence[int], int | Sequence[int]]
"""The axes of the inputs of a leaf's matrices, and those of their outputs, each a number or several."""

Axes = tuple[tuple[int, ...], tuple[int, ...]]
"""The same, each a tuple."""

Coefficients = tuple[tuple[float, float, float], ...]

JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5


def _triple(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)


class orthogonalize(Rule):
    r"""The nearest matrix with singular values about 1: UΣVᵀ → U·f(Σ)·Vᵀ with f between 0.68 and 1.13.

    Newton and Schulz's iteration on X = u/‖u‖, with a few products of matrices instead of a decomposition::

        A = XXᵀ;   X ← aX + (bA + cA²)X

    A leaf of two axes is a matrix. In one of more, all axes but the output's are joined: the kernel of a convolution
    (height, width, in, out) is a matrix of height·width·in by out. Leading axes may count matrices instead, as those
    of layers that ``scan`` runs over. Matrices of one shape are iterated together, as one batched product.

    Args:
        coefficients: (a, b, c) of each iteration. Five times (3.4445, −4.7750, 2.0315), Jordan's, which raise small
            singular values fastest and do not converge to 1.
        stacked: how many leading axes count matrices; 0.
        output: the axis of the outputs: -1, as in JAX's libraries, or 0 (after the stacked ones), as in torch's. Only
            for leaves of more than two further axes does it matter.
        eps: added to the norm, ≥ 0. 0, the default: a matrix and any multiple of it give the same. Keras adds 1e-7
            and optax 1e-8.
        form: "add", or "max" for a norm of at least ``eps``, as torch has it.
        norm: what X is divided by at first, so that no singular value is above 1: "frobenius"; "schatten", the fourth
            root of Σσ⁴, and "spectral", the largest σ, which leave them closer to 1; or "aol", each row of the shorter
            side by the root of its sum of |uuᵀ|.
        dual: whether the result is multiplied by its inner product with u, about the sum of u's singular values. Then
            it is the steepest descent that a penalty on the largest singular value gives, and grows with u. False.

    A zero matrix stays zero; an inf or NaN makes its matrix NaN.

    Raises:
        ValueError: for another ``form`` or ``norm``; for a leaf with fewer than two axes that do not count, says
            which. Give such leaves another optimizer (see ``partition``), or leave the rule out there (see ``where``).
            For a shard of a leaf, inside of ``jax.shard_map``.

    Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; Bernstein & Newhouse
    (2024), "Old optimizer, new norm".

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.orthogonalize(), jnp.diag(jnp.array([8.0, -2.0]))
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates.round(2))
    [[ 0.74  0.  ]
     [ 0.   -0.74]]
    """

    equation = r"u \leftarrow U f(\Sigma) V^\top \text{ of } u = U \Sigma V^\top, \quad f(\Sigma) \approx 1"
    maps_trees = True
    pure = True

    coefficients: Coefficients = dataclasses.field(default=JORDAN, kw_only=True)
    stacked: int = dataclasses.field(default=0, kw_only=True)
    output: int = dataclasses.field(default=-1, kw_only=True)
    eps: float = dataclasses.field(default=0.0, kw_only=True)
    form: str = dataclasses.field(default="add", kw_only=True)
    norm: str = dataclasses.field(default="frobenius", kw_only=True)
    dual: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_view(self.label, self.stacked, self.output)
        if not isinstance(self.coefficients, tuple) or not all(map(_triple, self.coefficients)):
            found = f"found {self.coefficients!r}"
            raise TypeError(f"orthogonalize: coefficients must be a tuple of (a, b, c) for each iteration, {found}")
        if not self.eps >= 0:
            raise ValueError(f"orthogonalize: eps must be 0 or more, found {self.eps!r}")
        check_choice(self.label, "form", self.form, ("add", "max"))
        check_choice(self.label, "norm", self.norm, ("frobenius", "schatten", "spectral", "aol"))

    @property
    def normalizes(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on dual
        return not self.dual

    def init_tree(self, params: Any) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim < self.stacked + 2:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"gradtx: rule {self.title!r} needs matrices, and leaf {name!r} has shape {leaf.shape}"
                    f"{f', of which {self.stacked} axes count matrices' if self.stacked else ''}. Give such leaves "
                    "another optimizer (see partition), or leave the rule out there (see where)."
                )

    def apply_tree(self, trees, state):
        leaves, treedef = jax.tree.flatten(trees.direction)
        for x in leaves:
            check_whole(self.title, x)
        views = [stack_of(x, self.stacked, self.output) for x in leaves]
        alike: dict[Any, list[int]] = {}
        for i, view in enumerate(views):
            alike.setdefault((view.shape[1:], view.dtype), []).append(i)
        for members in alike.values():
            together = self._orthogonal(jnp.concatenate([views[i] for i in members]))
            ends = [sum(len(views[i]) for i in members[: k + 1]) for k in range(len(members) - 1)]
            for i, part in zip(members, jnp.split(together, ends), strict=True):
                views[i] = part
        shaped = [view.reshape(x.shape) for view, x in zip(views, leaves, strict=True)]
        return treedef.unflatten(shaped), state

    def _orthogonal(self, x: jax.Array) -> jax.Array:
        """Each matrix of a stack, orthogonalized; the shorter side first, so that A is small."""
        wide = x.shape[-2] <= x.shape[-1]
        u = x = x if wide else x.mT
        largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
        x = safe_divide(x, largest)  # squares that fit
        norm = self._norm(x)
        if self.eps:
            least = safe_divide(jnp.full_like(norm, self.eps), largest)
            norm = norm + least if self.form == "add" else jnp.maximum(norm, least)
        x = safe_divide(x, norm)
        for a, b, c in self.coefficients:
            square = x @ x.mT.conj()
            x = a * x + (b * square + c * square @ square) @ x
        if self.dual:
            x = jnp.sum(u.conj() * x, axis=(-2, -1), keepdims=True) * x
        return x if wide else x.mT

    def _norm(self, x: jax.Array) -> jax.Array:
        """The norm of each matrix of a stack; in the form "aol" one for each of its rows."""
        if self.norm == "frobenius":
            return jnp.sqrt(jnp.sum((x * x.conj()).real, axis=(-2, -1), keepdims=True))
        if self.norm == "spectral":
            return jnp.linalg.norm(x, 2, axis=(-2, -1), keepdims=True)
        square = jnp.abs(x @ x.mT.conj())
        if self.norm == "aol":
            return jnp.sqrt(jnp.sum(square, axis=-1, keepdims=True))
        return jnp.sum(square**2, axis=(-2, -1), keepdims=True) ** 0.25


class scale_by_shape(Rule):
    r"""Scale by the sides of the matrix: u ← u·√max(1, out/in), or u ← u·ρ·√max(in, out).

    An orthogonal matrix has entries of root mean square 1/√max(in, out). The first form keeps the change of a layer's
    outputs alike for layers of any width; the second makes the root mean square ρ, like the steps of Adam, so that
    its learning rate and decay can be taken over.

    Args:
        rms: ρ of the second form; None, the default: the first. 0.2 is usual.
        stacked, output: as in ``orthogonalize``; with two further axes, in is the first and out the second (as in
            Flax and Haiku), or with ``output=0`` the other way round (as in torch and Equinox).

    Inf and NaN stay in their element.

    Raises:
        ValueError: for a leaf with fewer than two axes that do not count; for a shard of a leaf, inside of
            ``jax.shard_map``.

    Source: Jordan et al. (2024); Liu et al. (2025), "Muon is scalable for LLM training", for the second form.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_shape(), jnp.ones((1, 4))
    >>> print(tx.update(g, tx.init(g))[0])
    [[2. 2. 2. 2.]]
    """

    rms: Hyper | None = hyper(default=None, low=0)
    stacked: int = dataclasses.field(default=0, kw_only=True)
    output: int = dataclasses.field(default=-1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_view(self.label, self.stacked, self.output)

    @property
    def equation(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the form
        grown = r"\sqrt{\max(1, n_\mathrm{out} / n_\mathrm{in})}"
        return r"u \leftarrow u " + (grown if self.rms is None else r"\rho \sqrt{\max(n_\mathrm{in}, n_\mathrm{out})}")

    def apply(self, signal, slots, param, c):
        u = signal.direction
        check_whole(self.title, u)
        if u.ndim < self.stacked + 2:
            raise ValueError(f"{self.title}: needs matrices, found a leaf of shape {u.shape}")
        _, inputs, outputs = matrices_shape(u.shape, self.stacked, self.output)
        if self.rms is None:
            return signal._replace(direction=math.sqrt(max(1.0, outputs / max(inputs, 1))) * u), {}
        return signal._replace(direction=c.rms * math.sqrt(max(inputs, outputs)) * u), {}


class as_matrices(Rule):
    r"""A chain that sees each leaf as matrices of inputs by outputs, whichever of its axes these are.

    The axes of the inputs are joined, and those of the outputs; all others count matrices. So with ``axes=(0, (1, 2))``
    the kernel of an attention's queries, (width, heads, size), is one matrix of width by heads·size; with ``(0, 2)`` it
    is one of width by size for each head; and ``(1, (2, 3))`` is for kernels of layers that ``scan`` runs over. The
    chain sees leaves of three axes, the number of matrices, inputs and outputs, so that its rules take ``stacked=1``.

    Args:
        tx: a gradtx chain or rule. The parameters that it sees are matrices, too.
        axes: the axes of the inputs and those of the outputs, a pair of numbers or tuples of them; or a function of
            the path of a leaf and of its shape and dtype, as a predicate of ``where`` is, that returns such a pair, or
            None for what is no matrix and stays as it is (but for an axis in front where it has three, so that no rule
            takes it for matrices).

    State: ``state``, that of the chain. Its slots have the shapes of the matrices; rules that map elements, as
    ``momentum``, are better left in front, where theirs are like the parameters.

    Inf and NaN: what the chain does.

    Raises:
        TypeError: for a ``tx`` that is no chain or rule of gradtx, and for other ``axes``.
        ValueError: for axes that a leaf does not have, or that are inputs and outputs both, says which leaf. For a
            shard of a leaf, inside of ``jax.shard_map``.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.as_matrices(gradtx.scale_by_shape(stacked=1), (0, (1, 2)))  # one input, four outputs
    >>> g = jnp.ones((1, 2, 2))
    >>> print(tx.update(g, tx.init(g))[0])
    [[[2. 2.]
      [2. 2.]]]
    """

    equation = r"u_{(n, i, o)} \leftarrow \mathrm{tx}(u_{(n, i, o)})"
    maps_trees = True

    tx: Transformation[Any]
    axes: Sides | Callable[[str, Any], Sides | None]

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.tx, Transformation):
            raise TypeError(f"{self.label}: tx must be a gradtx chain or rule, found {self.tx!r}")
        if not callable(self.axes):
            object.__setattr__(self, "axes", _pair(self.label, self.axes))

    @property
    def pure(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return not callable(self.axes) and is_pure(self.tx)

    @property
    def needs_params(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return any(rule.needs_params for rule in self.tx.rules)

    @property
    def accumulates(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return any(rule.accumulates for rule in self.tx.rules)

    @property
    def normalizes(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return any(rule.normalizes for rule in self.tx.rules)

    def sides(self, tree: Any) -> list[Sides | None]:
        """The axes of inputs and of outputs of each leaf; None of what is no matrix."""
        leaves, _ = flatten_with_paths(tree)
        axes = self.axes
        if not callable(axes):
            return [axes] * len(leaves)
        return [axes(path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) for path, leaf in leaves]

    def _views(self, tree: Any) -> list[View | None]:
        """The view of each leaf; None of what is no matrix."""
        views: list[View | None] = []
        for (path, leaf), sides in zip(flatten_with_paths(tree)[0], self.sides(tree), strict=True):
            what = f"{self.title}, leaf {path!r}"
            views.append(None if sides is None else view_of(what, leaf.shape, _pair(what, sides)))
        return views

    def init_tree(self, params: Any) -> Any:
        return self.tx.init(self._seen(jax.tree.map(unsplit, params), self._views(params)))

    def apply_tree(self, trees, state):
        views = self._views(trees.direction)
        params = None if trees.params is None else self._seen(trees.params, views)
        updates, state = self.tx.update(self._seen(trees.direction, views), state, params, **trees.extra)
        leaves, treedef = jax.tree.flatten(trees.direction)
        rows = zip(views, leaves, treedef.flatten_up_to(updates), strict=True)
        return treedef.unflatten([u.reshape(x.shape) if v is None else v.back(u, x.shape) for v, x, u in rows]), state

    def _seen(self, tree: Any, views: list[View | None]) -> Any:
        """The tree as the chain sees it."""
        leaves, treedef = jax.tree.flatten(tree)
        seen = []
        for x, view in zip(leaves, views, strict=True):
            if view is not None:
                check_whole(self.title, x)
            seen.append(view.into(x) if view is not None else x[None] if x.ndim == 3 else x)
        return treedef.unflatten(seen)


class View(NamedTuple):
    """A leaf as a stack of matrices: the order of its axes, and the sizes of number, inputs and outputs."""

    order: tuple[int, ...]
    sides: tuple[int, int, int]

    def into(self, x: jax.Array) -> jax.Array:
        """The matrices of a leaf."""
        return x.transpose(self.order).reshape(self.sides)

    def back(self, u: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The leaf of this shape with these matrices."""
        return u.reshape([shape[axis] for axis in self.order]).transpose(np.argsort(self.order).tolist())


def view_of(what: str, shape: tuple[int, ...], axes: Axes) -> View:
    """The view of a leaf by its axes of inputs and outputs.

    Raises:
        ValueError: for axes that it does not have, or has twice.
    """
    given = [axis for side in axes for axis in side]
    missing = any(not -len(shape) <= axis < len(shape) for axis in given)
    if missing or len({axis % len(shape) for axis in given}) < len(given):
        raise ValueError(
            f"gradtx: {what}: the axes of inputs and outputs must be different ones of its {len(shape)}, found "
            f"{axes[0]} and {axes[1]} for the shape {shape}"
        )
    inputs, outputs = ([axis % len(shape) for axis in side] for side in axes)
    others = [axis for axis in range(len(shape)) if axis not in (*inputs, *outputs)]
    number, rows, columns = (math.prod(shape[axis] for axis in group) for group in (others, inputs, outputs))
    return View((*others, *inputs, *outputs), (number, rows, columns))


def _pair(rule: str, axes: Any) -> Axes:
    """Axes of inputs and of outputs, each a number or a tuple of them."""
    sides = [(side,) if isinstance(side, int) else side for side in axes] if isinstance(axes, tuple | list) else []
    if len(sides) != 2 or not all(
        isinstance(side, tuple | list) and all(type(axis) is int for axis in side) for side in sides
    ):
        raise TypeError(f"{rule}: axes must be a pair, those of the inputs and those of the outputs, found {axes!r}")
    return tuple(sides[0]), tuple(sides[1])


def is_pure(tx: Transformation[Any]) -> bool:
    """True if a chain in a rule makes the same of the same arrays, whatever it calls."""
    return Inside(tx).is_pure and all(rule.pure or not rule.maps_trees for rule in tx.rules)


class in_subspace(Rule):
    r"""A chain that sees a few directions of each matrix alone: u ← α·P·tx(Pᴴg), P being n by r. That is GaLore.

    The columns of P are the first r singular vectors of the gradient, along the shorter side of the matrix; of every
    so many steps the first one takes them anew. What the chain holds is r times the longer side, instead of all of the
    matrix. Leaves that are no matrices go through the chain as they are.

    Args:
        tx: a gradtx chain or rule, none that needs the parameters.
        rank: r, at least 1; 128 as its authors take. A shorter side than that is all there.
        factor: α of the matrices. 1; the authors take 0.25.
        every: how many steps a basis stays, at least 1. 200 as its authors take.
        side: "short", as in the paper; or "long", with less in the slots of the chain and more in P.
        stacked: how many leading axes count matrices, in a leaf of two more; 0.

    State: ``state``, a dict of ``inner``, the state of the chain in the subspace; and ``basis``, P of each leaf, of no
    columns where it is no matrix. What the chain has averaged stays when P changes; each new column has the sign that
    turns it towards its predecessor, so that nothing depends on the signs of a decomposition.

    Inf and NaN in a gradient spoil its row or column, and what the chain has averaged of it; the whole leaf from the
    step on that takes the basis anew of one.

    Raises:
        TypeError: for a ``tx`` that is no chain or rule of gradtx; for a ``rank`` or an ``every`` that is no integer.
        ValueError: for a ``tx`` with a rule that needs the parameters, which are not in the subspace: put it behind.
            For a shard of a matrix, inside of ``jax.shard_map``.

    Source: Zhao et al. (2024), "GaLore: memory-efficient LLM training by gradient low-rank projection", Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.in_subspace(gradtx.sign(), rank=1), jnp.array([[3.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates)  # the second row is left out
    [[1. 1. 0.]
     [0. 0. 0.]]
    """

    equation = r"u \leftarrow \alpha P \, \mathrm{tx}(P^H g), \quad g = P \Sigma V^H + \dots"
    maps_trees = True
    accumulates = True

    tx: Transformation[Any]
    rank: int = 128
    factor: Hyper = hyper(default=1.0)
    every: int = dataclasses.field(default=200, kw_only=True)
    side: str = dataclasses.field(default="short", kw_only=True)
    stacked: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.tx, Transformation):
            raise TypeError(f"in_subspace: tx must be a gradtx chain or rule, found {self.tx!r}")
        if needy := [rule.label for rule in self.tx.rules if rule.needs_params]:
            raise ValueError(
                f"in_subspace: {needy[0]} needs the parameters, which are not in the subspace: put it behind"
            )
        for name in ("rank", "every"):
            integer(self.label, name, getattr(self, name), 1)
        check_choice(self.label, "side", self.side, ("short", "long"))
        check_view(self.label, self.stacked, -1)

    @property
    def pure(self):  # pyright: ignore[reportIncompatibleVariableOverride] - depends on the chain
        return is_pure(self.tx)

    def _axis(self, x: jax.Array) -> int | None:
        """The side of a matrix that the basis is of, -2 or -1; None of what is no matrix."""
        if x.ndim != self.stacked + 2 or x.size == 0:
            return None
        rows, columns = x.shape[-2:]
        return -2 if (rows <= columns if self.side == "short" else rows >= columns) else -1

    def init_tree(self, params: Any) -> dict[str, Any]:
        def blank(p: jax.Array) -> jax.Array:
            axis = self._axis(p)
            r = 0 if axis is None else min(self.rank, *p.shape[-2:])
            return jnp.zeros((*p.shape[:-2], 0 if axis is None else p.shape[axis], r), p.dtype)

        basis = jax.tree.map(blank, params)
        return {"inner": self.tx.init(jax.tree.map(self._into, params, basis)), "basis": basis}

    def apply_tree(self, trees, state):
        def turned(g: jax.Array, basis: jax.Array) -> jax.Array:
            if self._axis(g) is None:
                return basis
            check_whole(self.title, g)
            return jax.lax.cond(trees.count % self.every == 0, self._leading, lambda g, old: old, g, basis)

        def back(u: jax.Array, g: jax.Array, basis: jax.Array) -> jax.Array:
            axis, basis = self._axis(g), basis.astype(u.dtype)
            if axis is None:
                return u
            return trees.scalars(u.dtype).factor * (basis @ u if axis == -2 else u @ basis.mT.conj())

        basis = jax.tree.map(turned, trees.direction, state["basis"])
        inside = jax.tree.map(self._into, trees.direction, basis)
        updates, inner = self.tx.update(inside, state["inner"], None, **trees.extra)
        return jax.tree.map(back, updates, trees.direction, basis), {"inner": inner, "basis": basis}

    def _leading(self, g: jax.Array, old: jax.Array) -> jax.Array:
        """The first singular vectors along the side, each turned towards the one that it takes the place of."""
        u, _, vh = jnp.linalg.svd(g, full_matrices=False)
        new = (u if self._axis(g) == -2 else vh.mT.conj())[..., : old.shape[-1]].astype(old.dtype)
        along = jnp.sum(new.conj() * old, axis=-2, keepdims=True)
        return new * jnp.where(along == 0, 1, safe_divide(along, jnp.abs(along)))

    def _into(self, x: jax.Array, basis: jax.Array) -> jax.Array:
        """The matrix in the coordinates of the basis; all else as it is."""
        axis, basis = self._axis(x), basis.astype(x.dtype)
        if axis is None:
            return x
        return basis.mT.conj() @ x if axis == -2 else x @ basis


def check_view(rule: str, stacked: int, output: int) -> None:
    """Refuses what says no view of a leaf as matrices."""
    if stacked < 0:
        raise ValueError(f"{rule}: stacked must be a number of axes, 0 or more, found {stacked!r}")
    if output not in (0, -1):
        raise ValueError(f"{rule}: output must be -1, the last axis, or 0, the first, found {output!r}")


def matrices_shape(shape: tuple[int, ...], stacked: int, output: int) -> tuple[int, int, int]:
    """The number of matrices in a leaf, and the sizes of their inputs and outputs."""
    sides = shape[stacked:]
    inputs = math.prod(sides[:-1] if output == -1 else sides[1:])
    return math.prod(shape[:stacked]), inputs, sides[output]


def stack_of(x: jax.Array, stacked: int, output: int) -> jax.Array:
    """A leaf as a stack of matrices, the outputs on the side where they are in the leaf."""
    number, inputs, outputs = matrices_shape(x.shape, stacked, output)
    return x.reshape(number, inputs, outputs) if output == -1 else x.reshape(number, outputs, inputs)
