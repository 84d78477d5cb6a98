"""Rules that hold a square matrix for each side of a leaf: what its gradients have in common along that side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.contract import Tick
from gradtx._core.dtypes import promoted
from gradtx._core.limits import integer
from gradtx._core.mesh import check_whole
from gradtx._core.numerics import abs_sq, is_complex, mix, real_dtype, safe_divide, safe_sqrt
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["scale_by_eigenbasis_rms", "scale_by_kronecker_root"]

Sides = tuple[jax.Array | None, ...]
"""For each axis of a leaf a matrix, or a vector, or nothing."""


class scale_by_eigenbasis_rms(Rule):
    r"""``rms`` and ``precondition`` in a basis in which elements of the gradient are hardly correlated.

    For a matrix, with L and R the averages of ggᴴ and gᴴg, and the eigenvectors Q_L and Q_R of both::

        g' = Q_Lᴴ g Q_R;   s ← βs + (1−β)|g'|²;   u ← Q_L ((Q_Lᴴ u Q_R)/(√s + ε)) Q_Rᴴ

    so Adam's division acts on combinations of elements instead of elements. In leaves of more axes each axis has its
    matrix; leaves of fewer than two, and axes longer than ``largest``, keep their elements. A step divides by the basis
    of before, which the first gradient only makes: its direction is 0 (see ``skip_first``). The basis follows L and R
    by one power iteration every so many steps, and s keeps its order.

    Args:
        decay: β in [0, 1). 0.95 as its authors take.
        eps: ε ≥ 0, outside the root. 1e-8.
        basis_decay: of L and R, in [0, 1). 0.95.
        every: how many steps the basis stays, at least 1. 10.
        largest: the longest axis with a matrix. 10000.

    State: ``state``, a dict of trees: ``s`` like the parameters, ``factors`` (L and R) and ``bases`` (Q) with a tuple
    for each leaf; ``weight``, the total weight in s.

    Weights: w_u ← w_u/√w with w that of s, so that ``debias`` after it is Adam's, with ε on the biased average.

    Inf and NaN in a gradient spoil its leaf, from then on. Where a square overflows, above 1.8e19 in float32, the step
    is 0 from then on, and elements along its axes keep to themselves.

    Raises:
        ValueError: for an ``every`` below 1; for a shard of a leaf with two and more axes, inside of ``jax.shard_map``.

    Source: Vyas et al. (2024), "SOAP: improving and stabilizing Shampoo using Adam", Algorithm 3.

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.scale_by_eigenbasis_rms(0.0, every=1)
    >>> g, state = jnp.array([[3.0, 0.0], [0.0, 4.0]]), tx.init(jnp.zeros((2, 2)))
    >>> for _ in range(2):
    ...     updates, state = tx.update(g, state)
    >>> print(abs(updates))  # the axes are its basis
    [[1. 0.]
     [0. 1.]]
    """

    equation = (
        r"s \leftarrow \beta s + (1-\beta) \lvert Q_L^H g Q_R\rvert^2, \quad "
        r"u \leftarrow Q_L \frac{Q_L^H u Q_R}{\sqrt{s} + \epsilon} Q_R^H"
    )
    maps_trees = True
    nonnegative = ("state/s", "weight")
    pure = True
    normalizes = True
    accumulates = True

    decay: Hyper = hyper(default=0.95, low=0, below=1)
    eps: Hyper = hyper(default=1e-8, low=0)
    basis_decay: Hyper = hyper(default=0.95, low=0, below=1)
    every: int = dataclasses.field(default=10, kw_only=True)
    largest: int = dataclasses.field(default=10_000, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        integer(self.label, "every", self.every, 1)

    def scalars(self):
        return {"weight": 0.0}

    def tick(self, h, scalars, weights, count):
        starts, one = count == 0, jnp.ones_like(h.decay)
        weight = jnp.where(starts, 0, mix(h.decay, h.decay_complement, scalars.weight, one))
        divided = weights._replace(direction=safe_divide(weights.direction, safe_sqrt(weight)))
        return Tick(vars(h), {"weight": weight}, divided)

    def init_tree(self, params: Any) -> dict[str, Any]:
        def sides(p: jax.Array) -> Sides:
            return tuple(jnp.zeros((n, n), p.dtype) if has else None for has, n in self._sides(p))

        factors = jax.tree.map(sides, params)
        return {"s": jax.tree.map(lambda p: jnp.zeros_like(p.real), params), "factors": factors, "bases": factors}

    def apply_tree(self, trees, state):
        gradients, treedef = jax.tree.flatten(trees.gradient)
        before = zip(*(treedef.flatten_up_to(state[name]) for name in ("s", "factors", "bases")), strict=True)
        out, after = [], []
        for g, u, slots in zip(gradients, jax.tree.leaves(trees.direction), before, strict=True):
            if g.ndim > 1:
                check_whole(self.title, g)
            g, u, wide = _widened(g, u, slots)
            direction, new = self._of_leaf(g, u, wide, trees.scalars(g.dtype), trees.count)
            out.append(direction)
            after.append(_as_before(new, slots))
        columns = zip(*after, strict=True) if after else ([], [], [])
        named = zip(("s", "factors", "bases"), columns, strict=True)
        return treedef.unflatten(out), {name: treedef.unflatten(list(column)) for name, column in named}

    def _of_leaf(self, g: jax.Array, u: jax.Array, slots: Any, c: Any, count: jax.Array) -> tuple[jax.Array, Any]:
        """Direction and state of a leaf after a step."""
        starts, (s, factors, bases) = count == 0, slots
        rotated = rotate(g, [None if q is None else q.conj() for q in bases])
        s = jnp.where(starts, s, mix(c.decay, c.decay_complement, s, abs_sq(rotated)))
        divided = safe_divide(rotate(u, [None if q is None else q.conj() for q in bases]), safe_sqrt(s) + c.eps)
        u = jnp.where(starts, 0, rotate(divided, [None if q is None else q.mT for q in bases]))
        factors = tuple(
            None if x is None else mix(c.basis_decay, c.basis_decay_complement, x, outer(g, axis))
            for axis, x in enumerate(factors)
        )
        kind = jnp.where(starts, 0, jnp.where(count % self.every == 0, 1, 2))
        for axis, factor in enumerate(factors):
            if factor is not None:
                turns = (_eigenvectors, _power_iteration, lambda factor, q, s, axis: (q, s))
                ways = [lambda factor, q, s, turn=turn, axis=axis: turn(factor, q, s, axis) for turn in turns]
                q, s = jax.lax.switch(kind, ways, factor, bases[axis], s)
                bases = (*bases[:axis], q, *bases[axis + 1 :])
        return u, (s, factors, bases)

    def _sides(self, p: jax.Array) -> list[tuple[bool, int]]:
        """For each axis whether it has a matrix, and its length."""
        return [(p.ndim > 1 and 1 < n <= self.largest, n) for n in p.shape]


class scale_by_kronecker_root(Rule):
    r"""Divide by the root of a Kronecker product: for a matrix, u ← L^(−¼) u R^(−¼), L = Σggᴴ + ε, R = Σgᴴg + ε.

    With k axes each has a matrix H = Σ g_(a)g_(a)ᴴ + ε, and u is multiplied by H^(−p/k) along it. So of one step it is
    the nearest orthogonal matrix. An axis longer than ``largest``, and that of a vector, has the diagonal of its H
    alone: a vector is divided as in AdaGrad.

    Args:
        decay: in [0, 1), of averages instead of sums; None, the default: sums, as in the paper.
        eps: ε ≥ 0, added to each H. 1e-4.
        power: p ≥ 0 of the product of all. 0.5, the root, as in AdaGrad.
        every: how many steps the roots stay, at least 1. 1.
        largest: the longest axis with a matrix. 1024: roots take n³ operations.

    State: ``state``, a dict of trees with a tuple for each leaf: ``factors``, the sums without ε, and ``roots``.

    Inf and NaN in a gradient spoil its leaf, from then on. One whose squares overflow, above 1.8e19 in float32, makes
    the steps of its leaf 0. Eigenvalues below the last digit of the largest are rounding, and taken for that digit.

    Raises:
        ValueError: for an ``every`` below 1; for a shard of a leaf with two and more axes, inside of ``jax.shard_map``.

    Source: Gupta, Koren & Singer (2018), "Shampoo: preconditioned stochastic tensor optimization", Algorithm 2.

    >>> import gradtx, jax.numpy as jnp
    >>> tx, g = gradtx.scale_by_kronecker_root(eps=0.0), jnp.diag(jnp.array([8.0, -2.0]))
    >>> print(tx.update(g, tx.init(g))[0].round(3))
    [[ 1.  0.]
     [ 0. -1.]]
    """

    equation = r"L \leftarrow L + g g^H, \quad R \leftarrow R + g^H g, \quad u \leftarrow L^{-1/4} u R^{-1/4}"
    maps_trees = True
    pure = True
    normalizes = True
    accumulates = True

    decay: Hyper | None = hyper(default=None, low=0, below=1)
    eps: Hyper = hyper(default=1e-4, low=0)
    power: Hyper = hyper(default=0.5, low=0)
    every: int = dataclasses.field(default=1, kw_only=True)
    largest: int = dataclasses.field(default=1024, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        integer(self.label, "every", self.every, 1)

    def init_tree(self, params: Any) -> dict[str, Any]:
        def sides(p: jax.Array) -> Sides:
            matrices = [p.ndim > 1 and n <= self.largest for n in p.shape]
            zeros = zip(matrices, p.shape, strict=True)
            return tuple(
                jnp.zeros((n, n), p.dtype) if matrix else jnp.zeros(n, real_dtype(p.dtype)) for matrix, n in zeros
            )

        factors = jax.tree.map(sides, params)
        return {"factors": factors, "roots": factors}

    def apply_tree(self, trees, state):
        gradients, treedef = jax.tree.flatten(trees.gradient)
        before = zip(*(treedef.flatten_up_to(state[name]) for name in ("factors", "roots")), strict=True)
        out, after = [], []
        for g, u, slots in zip(gradients, jax.tree.leaves(trees.direction), before, strict=True):
            if g.ndim > 1:
                check_whole(self.title, g)
            g, u, (factors, roots) = _widened(g, u, slots)
            c = trees.scalars(g.dtype)
            factors = tuple(self._factor(c, x, outer(g, a) if x.ndim > 1 else squares(g, a)) for a, x in
                            enumerate(factors))  # fmt: skip
            roots = jax.lax.cond(
                trees.count % self.every == 0,
                lambda factors, roots, c=c, k=g.ndim: tuple(_root(x, c.eps, c.power / k) for x in factors),
                lambda factors, roots: roots,
                factors,
                roots,
            )
            out.append(rotate(u, [x if x.ndim == 1 else x.mT for x in roots]))
            after.append(_as_before((factors, roots), slots))
        named = zip(("factors", "roots"), zip(*after, strict=True) if after else ([], []), strict=True)
        return treedef.unflatten(out), {name: treedef.unflatten(list(column)) for name, column in named}

    def _factor(self, c: Any, x: jax.Array, new: jax.Array) -> jax.Array:
        return x + new if self.decay is None else mix(c.decay, c.decay_complement, x, new)


def _widened(g: jax.Array, u: jax.Array, slots: Any) -> tuple[jax.Array, jax.Array, Any]:
    """All of a leaf in the widest of their dtypes, each real or complex as it is."""
    wide = promoted(g.dtype, *(x.dtype for x in jax.tree.leaves(slots)))
    real = real_dtype(wide)
    return (
        g.astype(wide),
        u.astype(wide),
        jax.tree.map(lambda x: x.astype(wide if is_complex(x.dtype) else real), slots),
    )


def _as_before(new: Any, slots: Any) -> Any:
    return jax.tree.map(lambda new, old: new.astype(old.dtype), new, slots)


def rotate(x: jax.Array, sides: Sequence[jax.Array | None]) -> jax.Array:
    """Σ_j x_j M_jk along each axis that has a matrix M; times the vector where it has one."""
    for axis, side in enumerate(sides):
        if side is None:
            continue
        if side.ndim == 1:
            x = x * jnp.broadcast_to(side.reshape([-1 if a == axis else 1 for a in range(x.ndim)]), x.shape)
        else:
            x = jnp.moveaxis(jnp.tensordot(x, side.astype(x.dtype), ((axis,), (0,))), -1, axis)
    return x


def outer(g: jax.Array, axis: int) -> jax.Array:
    """ggᴴ with all axes but one joined: what elements along that axis have in common."""
    others = [a for a in range(g.ndim) if a != axis]
    return jnp.tensordot(g, g.conj(), (others, others))


def squares(g: jax.Array, axis: int) -> jax.Array:
    """The diagonal of it."""
    return abs_sq(g).sum([a for a in range(g.ndim) if a != axis])


def _eigenvectors(factor: jax.Array, q: jax.Array, s: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The eigenvectors, that of the largest eigenvalue first."""
    del q, axis
    return jnp.linalg.eigh(_finite(factor)[0])[1][:, ::-1], s


def _power_iteration(factor: jax.Array, q: jax.Array, s: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Nearer to the eigenvectors, in the order of what the eigenvalues seem to be; s goes with them."""
    factor, _ = _finite(factor)
    values = jnp.sum((q.conj() * (factor @ q)).real, axis=0)
    order = jnp.argsort(-values)
    return jnp.linalg.qr(factor @ q[:, order])[0], jnp.take(s, order, axis)


def _root(factor: jax.Array, eps: jax.Array, power: jax.Array) -> jax.Array:
    """(H + ε)^(−p), or of a diagonal; 0 where it is infinite."""
    if factor.ndim == 1:
        return _inverse_power(factor + eps, power)
    factor, overflowed = _finite(factor)
    values, vectors = jnp.linalg.eigh(factor)
    rounding = jnp.finfo(values.dtype).eps * jnp.max(values, initial=0)  # what is less is no digit of the matrix
    root = (vectors * _inverse_power(jnp.maximum(values, rounding) + eps, power)[None, :]) @ vectors.mT.conj()
    return jnp.where(overflowed, 0, root)


def _finite(factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix of sums of squares that has eigenvalues, and whether a square overflowed, and it is not this one."""
    squares = jnp.diagonal(factor).real
    overflowed = jnp.any(squares == jnp.inf) & ~jnp.any(jnp.isnan(squares))
    return jnp.where(overflowed, jnp.eye(len(factor), dtype=factor.dtype), factor), overflowed


def _inverse_power(x: jax.Array, power: jax.Array) -> jax.Array:
    infinite = x <= 0
    return jnp.where(infinite, 0, jnp.where(infinite, 1, x) ** -power)
