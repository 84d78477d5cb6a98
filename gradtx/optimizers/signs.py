"""Optimizers whose direction is a sign."""

from __future__ import annotations

from gradtx._chain import Chain, chain
from gradtx._core.selectors import Select
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules import momentum, quasi_hyperbolic, resilient_step, scale, scale_by_learning_rate, sign
from gradtx.rules.base import Hyper

__all__ = ["lion", "rprop", "signum"]


def signum(learning_rate: Hyper, decay: Hyper = 0.9, weight_decay: Hyper = 0.0, decay_mask: Select = None) -> Chain:
    """Signum: the sign of the momentum; w ← w − η·(sign(m) + λw). With ``decay=0`` it is signSGD, with λ > 0 Tiger.

    Args:
        learning_rate: η, the change of each element in a step; 1e-4 in the paper.
        decay: β of m in [0, 1). 0.9 as in the paper.
        weight_decay: λ, decoupled. The paper has none.
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: very noisy gradients, or where only one bit of each can be sent.

    Source: Bernstein et al. (2018), "signSGD: compressed optimisation for non-convex problems".

    >>> import gradtx
    >>> print(gradtx.signum(1e-3))
    momentum(0.9) → sign() → scale_by_learning_rate(0.001)
    """
    decay_rules = decoupled(weight_decay, decay_mask)
    return chain(momentum(decay), sign(), *decay_rules, scale_by_learning_rate(learning_rate))


def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    weight_decay: Hyper = 0.0,
    decay_mask: Select = None,
) -> Chain:
    """Lion: the sign of a mixture of momentum and gradient; w ← w − η·(sign(β₁m₋ + (1−β₁)g) + λw).

    One rule away from ``signum``: the mixture is ``quasi_hyperbolic(β₁/β₂)`` of the momentum that this gradient is
    already in, which is the same number, since m = β₂m₋ + (1−β₂)g.

    Args:
        learning_rate: η; 3 to 10 times smaller than Adam's, the paper says, since every element moves by all of it.
        b1: β₁ of the mixture in [0, 1). 0.9 as in the paper.
        b2: β₂ of m in (0, 1). 0.99 as in the paper.
        weight_decay: λ, decoupled. 0; 3 to 10 times Adam's if η is as much smaller. (optax has 1e-3.)
        decay_mask: which leaves decay, a selector as of ``where``; None: all.

    When to use: large batches and large models, with half of Adam's memory.

    Raises:
        ValueError: for a β₂ of 0, where m is the gradient and nothing of before is left to mix.

    Source: Chen et al. (2023), "Symbolic discovery of optimization algorithms".

    >>> import gradtx
    >>> print(gradtx.lion(1e-4))
    momentum(0.99) → quasi_hyperbolic(0.909091) → sign() → scale_by_learning_rate(0.0001)
    """
    if isinstance(b2, int | float) and b2 == 0:
        raise ValueError("lion: b2 must be greater than 0; with b2=0 take signum(learning_rate, decay=0)")
    mixture = quasi_hyperbolic(derived(lambda b1, b2: b1 / b2, b1, b2))
    decay_rules = decoupled(weight_decay, decay_mask)
    return chain(momentum(b2), mixture, sign(), *decay_rules, scale_by_learning_rate(learning_rate))


def rprop(
    learning_rate: Hyper = 0.01, shrink: Hyper = 0.5, grow: Hyper = 1.2, low: Hyper = 1e-6, high: Hyper = 50.0
) -> Chain:
    """Rprop: a step size for each element, grown and shrunk by the sign of the gradient; w ← w − d·sign(g).

    Args:
        learning_rate: the step sizes at the start. 0.01, torch's; the paper starts at 0.1.
        shrink, grow: the factors of d where the gradient turns and where it does not. 0.5 and 1.2 as in the paper.
        low, high: the bounds of d. 1e-6 and 50 as in the paper.

    When to use: small data sets, the whole of them in each batch.

    Source: Riedmiller & Braun (1993), "A direct adaptive method for faster backpropagation learning".

    >>> import gradtx
    >>> print(gradtx.rprop())
    resilient_step(0.01, 0.5, 1.2, 1e-06, 50) → scale(-1)
    """
    return chain(resilient_step(learning_rate, shrink, grow, low, high), scale(-1.0))
