"""Optimizers that see weights as matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax

from gradtx._chain import Chain, chain
from gradtx._core.limits import constant
from gradtx._core.selectors import Not, Select, selector
from gradtx._wrappers.partition import partition
from gradtx.optimizers._parts import decoupled
from gradtx.optimizers.classics import adamw
from gradtx.rules import (
    as_matrices,
    debias,
    in_subspace,
    momentum,
    orthogonalize,
    precondition,
    quasi_hyperbolic,
    rms,
    scale_by_learning_rate,
    scale_by_shape,
)
from gradtx.rules.base import Hyper
from gradtx.rules.matrices import Sides

__all__ = ["galore", "muon"]


def matrix(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
    """True if a leaf is a matrix or the kernel of a convolution over images: two or four axes."""
    del path
    return len(leaf.shape) in (2, 4)


def muon(
    learning_rate: Hyper = 0.02,
    decay: Hyper = 0.95,
    nesterov: bool = True,
    weight_decay: Hyper = 0.0,
    rms: Hyper | None = None,
    matrices: Select = matrix,
    stacked: Select = None,
    output: int = -1,
    otherwise: optax.GradientTransformation | None = None,
    axes: Mapping[str, Sides] | Iterable[tuple[Select, Sides]] = (),
) -> partition:
    """Muon: the momentum of each matrix, orthogonalized; and AdamW for what is no matrix.

    A chain of ``momentum, quasi_hyperbolic, orthogonalize, scale_by_shape, [add_decayed_weights,]
    scale_by_learning_rate`` for the leaves that ``matrices`` chooses.

    Args:
        learning_rate: η of the matrices. 0.02 as its author takes; with ``rms=0.2`` that of AdamW.
        decay: β of the momentum in [0, 1). 0.95 as its author takes.
        nesterov: whether to mix the gradient in once more, with the share 1−β. True as its author has it.
        weight_decay: λ of the matrices, decoupled.
        rms: None, the default: scaled by √max(1, out/in). A number, 0.2 usually: scaled to that root mean square.
        matrices: the leaves to orthogonalize, a selector as of ``where``. By default those of two axes, and of four,
            taken as kernels of convolutions with the outputs last. Embeddings and the last layer are better left to
            AdamW: ``lambda path, leaf: leaf.ndim == 2 and "embed" not in path``.
        stacked: leaves that are stacks of such matrices along their first axis, as in layers that ``scan`` runs over.
        output: the axis of a matrix's outputs: -1 as in Flax and Haiku, or 0 as in Equinox and torch.
        otherwise: what all other leaves get. None: ``adamw(3e-4, 0.9, 0.95)``.
        axes: leaves of other shapes, and which of their axes are inputs and outputs (see ``as_matrices``), a dict or
            pairs as in ``partition``: ``{"(query|key|value)/kernel": (0, (1, 2)), "out/kernel": ((0, 1), 2)}`` for
            attention in Flax, whose kernels have three axes. They come before ``matrices`` and ``stacked``.

    When to use: hidden layers of transformers and convolutional networks; fewer steps than AdamW.

    Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.muon(0.02)
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"].round(4)[0], updates["bias"].round(4))
    [-0.007 -0.007] [-0.0003 -0.0003]
    """

    def orthogonal(stacked: int, output: int) -> Chain:
        view: dict[str, Any] = {"stacked": stacked, "output": output}
        return chain(orthogonalize(**view), scale_by_shape(rms, **view))

    def chain_of(direction: optax.GradientTransformation) -> Chain:
        mixes = constant("muon", "nesterov", nesterov, "bool")
        average = [momentum(decay), *([quasi_hyperbolic(decay)] if mixes else [])]
        return chain(*average, direction, *decoupled(weight_decay, None), scale_by_learning_rate(learning_rate))

    pairs = list(axes.items() if isinstance(axes, Mapping) else axes) if isinstance(axes, Iterable) else [axes]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise TypeError(f"muon: axes must be a dict or pairs, {{select: (inputs, outputs)}}, found {axes!r}")
    given = [(selector(select), sides) for select, sides in pairs]
    viewed = [(select, chain_of(as_matrices(orthogonal(1, -1), sides))) for select, sides in given]
    plain = [(matrices, orthogonal(0, output)), *([] if stacked is None else [(stacked, orthogonal(1, output))])]
    others = tuple(Not(select) for select, _ in given)
    parts = [((selector(select), *others) if others else select, chain_of(direction)) for select, direction in plain]
    return partition([*viewed, *parts], default=adamw(3e-4, 0.9, 0.95) if otherwise is None else otherwise)


def galore(
    learning_rate: Hyper = 1e-2,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    rank: int = 128,
    factor: Hyper = 0.25,
    every: int = 200,
    stacked: int = 0,
    decay_mask: Select = None,
) -> Chain:
    """GaLore: Adam in a few directions of each matrix, w ← w − ηα·P·Adam(Pᵀg), and as it is for all other leaves.

    Args:
        learning_rate: η. 1e-2 as its authors take.
        b1, b2: β₁ and β₂ in [0, 1). 0.9 and 0.999 as in Adam.
        eps: ε outside the root. 1e-8.
        weight_decay: λ, decoupled.
        rank: the number of directions. 128 as its authors take, a quarter to a half of the shorter sides there.
        factor: α of the matrices. 0.25 as its authors take.
        every: how many steps the directions stay. 200 as its authors take.
        stacked: how many leading axes count matrices, as those of layers that ``scan`` runs over; 0.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: large matrices whose gradients are nearly of low rank, and no memory for the averages of Adam: these
    are of rank times the longer side. ``state_dtype="root8"`` is the other way to save it.

    Source: Zhao et al. (2024), "GaLore: memory-efficient LLM training by gradient low-rank projection".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.galore().rules]
    ['in_subspace', 'scale_by_learning_rate']
    """
    adam = chain(momentum(b1), rms(b2), debias(), precondition(eps))
    inside = in_subspace(adam, rank, factor, every=every, stacked=stacked)
    return chain(inside, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))
