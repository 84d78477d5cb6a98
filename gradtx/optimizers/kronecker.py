"""Optimizers that hold a square matrix for each side of a weight matrix."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled
from gradtx.rules import (
    debias,
    momentum,
    scale_by_eigenbasis_rms,
    scale_by_kronecker_root,
    scale_by_learning_rate,
    skip_first,
)
from gradtx.rules.base import Hyper

__all__ = ["shampoo", "soap"]


def shampoo(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    eps: Hyper = 1e-4,
    weight_decay: Hyper = 0.0,
    decay: Hyper | None = None,
    every: int = 1,
    largest: int = 1024,
    decay_mask: Select = None,
) -> Chain:
    """Shampoo: w ← w − η·L^(−¼) m R^(−¼) with L = Σggᵀ + ε and R = Σgᵀg + ε: AdaGrad for matrices.

    Args:
        learning_rate: η.
        b1: β₁ of the momentum in [0, 1). 0.9.
        eps: ε of both. 1e-4.
        weight_decay: λ, decoupled.
        decay: in [0, 1), of averages instead of sums of ggᵀ; None: sums, as in the paper.
        every: how many steps the roots stay. 1, as in the paper; more is cheaper.
        largest: the longest axis with a matrix; a longer one, and a vector, has its diagonal. 1024.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: few large batches, where steps are worth more than their time. ``soap`` is its heir.

    Source: Gupta, Koren & Singer (2018), "Shampoo: preconditioned stochastic tensor optimization".

    >>> import gradtx
    >>> print(gradtx.shampoo(0.1))
    momentum(0.9) → scale_by_kronecker_root(0.0001, 0.5) → scale_by_learning_rate(0.1)
    """
    root = scale_by_kronecker_root(decay, eps, every=every, largest=largest)
    return chain(momentum(b1), root, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))


def soap(
    learning_rate: Hyper = 3e-3,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    every: int = 10,
    largest: int = 10_000,
    decay_mask: Select = None,
) -> Chain:
    """SOAP: Adam in the eigenbasis of Shampoo's matrices; the first step only makes the basis.

    Args:
        learning_rate: η. 3e-3 as its authors take.
        b1, b2: β₁ of the momentum, and β₂ of the second moment and of the matrices, in [0, 1). 0.95 both.
        eps: ε outside the root, on the biased average, as its authors have it.
        weight_decay: λ, decoupled. 0; its authors take 0.01. It acts in the first step, too.
        every: how many steps the basis stays. 10.
        largest: the longest axis with a matrix. 10000.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: large batches; fewer steps than AdamW, each a little longer.

    Source: Vyas et al. (2024), "SOAP: improving and stabilizing Shampoo using Adam".

    >>> import gradtx
    >>> [rule.label for rule in gradtx.soap().rules]
    ['skip_first', 'momentum', 'scale_by_eigenbasis_rms', 'debias', 'scale_by_learning_rate']
    """
    divided = scale_by_eigenbasis_rms(b2, eps, b2, every=every, largest=largest)
    direction = chain(skip_first(), momentum(b1), divided, debias())
    return chain(direction, *decoupled(weight_decay, decay_mask), scale_by_learning_rate(learning_rate))
