"""Optimizers that see weights as matrices."""

from __future__ import annotations

from typing import Any

import jax
import optax

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx._wrappers.partition import partition
from gradtx.optimizers._parts import decoupled
from gradtx.optimizers.classics import adamw
from gradtx.rules import momentum, orthogonalize, quasi_hyperbolic, scale_by_learning_rate, scale_by_shape
from gradtx.rules.base import Hyper

__all__ = ["muon"]


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

    When to use: hidden layers of transformers and convolutional networks; fewer steps than AdamW.

    Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks".

    >>> import gradtx, jax.numpy as jnp
    >>> tx = gradtx.muon(0.02)
    >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> print(updates["kernel"].round(4)[0], updates["bias"].round(4))
    [-0.007 -0.007] [-0.0003 -0.0003]
    """

    def chain_of(axes: int) -> Chain:
        view: dict[str, Any] = {"stacked": axes, "output": output}
        average = [momentum(decay), *([quasi_hyperbolic(decay)] if nesterov else [])]
        direction = chain(*average, orthogonalize(**view), scale_by_shape(rms, **view))
        return chain(direction, *decoupled(weight_decay, None), scale_by_learning_rate(learning_rate))

    parts = [(matrices, chain_of(0))] + ([] if stacked is None else [(stacked, chain_of(1))])
    return partition(parts, default=adamw(3e-4, 0.9, 0.95) if otherwise is None else otherwise)
