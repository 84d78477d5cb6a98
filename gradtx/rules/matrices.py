"""Rules that see a leaf as a matrix, or as a stack of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.mesh import check_whole
from gradtx._core.numerics import safe_divide
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["orthogonalize", "scale_by_shape"]

Coefficients = tuple[tuple[float, float, float], ...]

JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5


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

    A zero matrix stays zero; an inf or NaN makes its matrix NaN.

    Raises:
        ValueError: for a leaf with fewer than two axes that do not count; says which. Give such leaves another
            optimizer (see ``partition``), or leave the rule out there (see ``where``). For a shard of a leaf, inside
            of ``jax.shard_map``.

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
    normalizes = True

    coefficients: Coefficients = dataclasses.field(default=JORDAN, kw_only=True)
    stacked: int = dataclasses.field(default=0, kw_only=True)
    output: int = dataclasses.field(default=-1, kw_only=True)
    eps: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_view(self.label, self.stacked, self.output)

    def init_tree(self, params: Any) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim < self.stacked + 2:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"gradtx: rule {self.name or self.label!r} needs matrices, and leaf {name!r} has shape {leaf.shape}"
                    f"{f', of which {self.stacked} axes count matrices' if self.stacked else ''}. Give such leaves "
                    "another optimizer (see partition), or leave the rule out there (see where)."
                )

    def apply_tree(self, trees, state):
        leaves, treedef = jax.tree.flatten(trees.direction)
        for x in leaves:
            check_whole(self.name or self.label, x)
        views = [as_matrices(x, self.stacked, self.output) for x in leaves]
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
        x = x if wide else x.mT
        largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
        x = safe_divide(x, largest)  # squares that fit
        norm = jnp.sqrt(jnp.sum((x * x.conj()).real, axis=(-2, -1), keepdims=True))
        x = safe_divide(x, norm if self.eps == 0 else norm + safe_divide(jnp.full_like(norm, self.eps), largest))
        for a, b, c in self.coefficients:
            square = x @ x.mT.conj()
            x = a * x + (b * square + c * square @ square) @ x
        return x if wide else x.mT


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
        check_whole(self.name or self.label, u)
        if u.ndim < self.stacked + 2:
            raise ValueError(f"{self.name or self.label}: needs matrices, found a leaf of shape {u.shape}")
        _, inputs, outputs = matrices_shape(u.shape, self.stacked, self.output)
        if self.rms is None:
            return signal._replace(direction=math.sqrt(max(1.0, outputs / max(inputs, 1))) * u), {}
        return signal._replace(direction=c.rms * math.sqrt(max(inputs, outputs)) * u), {}


def check_view(rule: str, stacked: int, output: int) -> None:
    """Refuses what says no view of a leaf as matrices."""
    if not isinstance(stacked, int) or isinstance(stacked, bool) or stacked < 0:
        raise ValueError(f"{rule}: stacked must be a number of axes, 0 or more, found {stacked!r}")
    if output not in (0, -1) or isinstance(output, bool):
        raise ValueError(f"{rule}: output must be -1, the last axis, or 0, the first, found {output!r}")


def matrices_shape(shape: tuple[int, ...], stacked: int, output: int) -> tuple[int, int, int]:
    """The number of matrices in a leaf, and the sizes of their inputs and outputs."""
    sides = shape[stacked:]
    inputs = math.prod(sides[:-1] if output == -1 else sides[1:])
    return math.prod(shape[:stacked]), inputs, sides[output]


def as_matrices(x: jax.Array, stacked: int, output: int) -> jax.Array:
    """A leaf as a stack of matrices, the outputs on the side where they are in the leaf."""
    number, inputs, outputs = matrices_shape(x.shape, stacked, output)
    return x.reshape(number, inputs, outputs) if output == -1 else x.reshape(number, outputs, inputs)
