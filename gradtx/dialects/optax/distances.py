"""optax's optimizers that find the length of steps by themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx._core.contract import Tick
from gradtx._core.limits import check_choice
from gradtx._core.selectors import Select
from gradtx.dialects._arguments import is_zero, steps
from gradtx.dialects.optax._parts import coupled
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper, Rule, hyper

__all__ = ["dadapt_adamw", "dog", "dowg", "mechanize", "prodigy"]


def dog(
    learning_rate: Hyper = 1.0,
    init_step: tuple[str, Hyper] = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    weight_decay: Hyper | None = None,
    mask: Select = None,
) -> Chain:
    """optax.contrib.dog: distance over gradients.

    Args:
        learning_rate: η.
        init_step: ("heuristic", r): the first distance in units of 1 + ‖w₀‖; ("distance", r): the distance itself;
            ("learning_rate", η₀): the first step is −ηη₀g, and its length the first distance.
        eps: ε inside the root.
        weight_decay: λ, added to the gradient; None for none.
        mask: which leaves decay; None: all.

    Raises:
        ValueError: for another ``init_step``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.dog().rules]
    ['scale_by_gradient_norm', 'scale_by_distance', 'scale_by_learning_rate']
    """
    kind, value = init_step
    check_choice("optax.dog", "the first of init_step", kind, ("heuristic", "distance", "learning_rate"))
    first = [first_rate(value)] if kind == "learning_rate" else []
    norm = rules.scale_by_gradient_norm(None, 0.0, eps, over="tree")
    distance = rules.scale_by_distance(0.0 if first else value, relative=kind == "heuristic")
    return chain(*coupled(weight_decay, mask), norm, distance, *first, rules.scale_by_learning_rate(learning_rate))


class first_rate(Rule):
    r"""A multiple of the gradient in the first step, on top of the direction: u ← u + η₀g.

    Args:
        rate: η₀.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.optax import first_rate
    >>> tx, g = gradtx.chain(gradtx.trace(0.5), first_rate(0.1)), jnp.array([1.0])
    >>> updates, state = tx.update(g, tx.init(g))
    >>> print(updates, tx.update(g, state)[0])
    [1.1] [1.5]
    """

    equation = r"u \leftarrow u + \eta_0 g \text{ in the first step}"

    rate: Hyper = hyper()

    def tick(self, h, scalars, weights, count):
        return Tick({"rate": jnp.where(count == 0, h.rate, 0)}, {}, weights)

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction + c.rate * signal.gradient), {}


def dowg(
    learning_rate: Hyper = 1.0,
    init_estim_sq_dist: Hyper | None = None,
    eps: Hyper = 1e-4,
    weight_decay: Hyper | None = None,
    mask: Select = None,
) -> Chain:
    """optax.contrib.dowg: distance over gradients, each gradient times the distance of its step.

    Args:
        learning_rate: η.
        init_estim_sq_dist: the square of the first distance; None: ``eps``.
        eps: ε outside the root.
        weight_decay, mask: as in ``dog``.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.dowg().rules]
    ['scale_by_distance', 'scale_by_learning_rate']
    """
    square = eps if init_estim_sq_dist is None else init_estim_sq_dist
    norm = rules.scale_by_gradient_norm(None, eps, over="tree")
    distance = rules.scale_by_distance(derived(lambda square: square**0.5, square), relative=False, tx=norm)
    return chain(*coupled(weight_decay, mask), distance, rules.scale_by_learning_rate(learning_rate))


def prodigy(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    beta3: Hyper | None = None,
    eps: Hyper = 1e-8,
    estim_lr0: Hyper = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    safeguard_warmup: bool = False,
) -> Chain:
    """optax.contrib.prodigy: Adam in units of an estimated distance, with its debiasing in the learning rate.

    Args:
        learning_rate: η; √(1−β₂ᵗ)/(1−β₁ᵗ) goes with it, in the estimate too.
        betas: β₁ and β₂.
        beta3: the decay of the estimate; None: √β₂.
        eps: ε outside the root, in units of the distance.
        estim_lr0: the first estimate.
        estim_lr_coef: the factor of the estimate.
        weight_decay: λ, decoupled.
        safeguard_warmup: whether the learning rate is left out of the estimate's denominator.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.prodigy().rules]
    ['in_units_of_distance', 'scale_by_learning_rate']
    """
    b1, b2 = betas

    rate = derived(_debiased, learning_rate, b1, b2, steps)
    beta3 = derived(lambda b2: b2**0.5, b2) if beta3 is None else beta3
    adam = chain(rules.momentum(b1), rules.rms(b2), rules.precondition(eps), *decoupled(weight_decay, None))
    units = rules.in_units_of_distance(adam, rate, estim_lr0, beta3, estim_lr_coef, weighted=not safeguard_warmup)
    return chain(units, rules.scale_by_learning_rate(rate))


def _debiased(eta: Any, b1: Any, b2: Any, count: Any) -> Any:
    """The learning rate with Adam's debiasing in it."""
    return jnp.asarray(eta, float) * _weight(b2, count) ** 0.5 / _weight(b1, count)


def _weight(beta: Any, count: Any) -> Any:
    """1 − βᵗ, of a β near 1, too: that of a number is in no float32."""
    with np.errstate(divide="ignore"):
        log = np.log(beta) if isinstance(beta, int | float) else jnp.log(beta)
    return -jnp.expm1((count + 1.0) * log)


def dadapt_adamw(
    learning_rate: Hyper = 1.0,
    betas: tuple[Hyper, Hyper] = (0.9, 0.999),
    eps: Hyper = 1e-8,
    estim_lr0: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
) -> Chain:
    """optax.contrib.dadapt_adamw: Adam at a lower bound of the distance, with its debiasing in the learning rate.

    The bound reads the second moment of before the gradient, where the paper, and ``gradtx.dadapt_adam``, have the one
    with it.

    Args:
        learning_rate: η; √(1−β₂ᵗ)/(1−β₁ᵗ) goes with it.
        betas: β₁ and β₂.
        eps: ε outside the root.
        estim_lr0: the first bound.
        weight_decay: λ, decoupled, times γ and the bound.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.dadapt_adamw().rules]
    ['rms', 'scale_by_distance_bound', 'momentum', 'precondition', 'scale']
    """
    b1, b2 = betas
    rate = derived(_debiased, learning_rate, b1, b2, steps)
    bound = rules.scale_by_distance_bound(rate, estim_lr0, derived(lambda b2: b2**0.5, b2), eps, lagged=True)
    adam = chain(rules.rms(b2), bound, rules.momentum(b1), rules.precondition(eps))
    direction = adam if is_zero(weight_decay) else chain(decayed_at_bound(adam, weight_decay))
    return chain(direction, rules.scale(-1.0))


class decayed_at_bound(Rule):
    r"""A chain with a ``scale_by_distance_bound``, and a weight decay in units of that bound: u ← tx(g) + γdλp.

    The bound d is that of before the step. Needs ``params`` in ``update``. State: ``state``, that of the chain.

    Args:
        tx: the chain.
        weight_decay: λ ≥ 0.

    >>> import gradtx, jax.numpy as jnp
    >>> from gradtx.dialects.optax import decayed_at_bound
    >>> bounded = gradtx.chain(gradtx.rms(0.5), gradtx.scale_by_distance_bound(initial=0.5), gradtx.precondition())
    >>> tx, p = decayed_at_bound(bounded, 0.2), jnp.array([3.0])
    >>> print(tx.update(jnp.zeros(1), tx.init(p), p)[0])
    [0.3]
    """

    equation = r"u \leftarrow \mathrm{tx}(g) + \gamma d \lambda p"
    maps_trees = True
    accumulates = True
    needs_params = True

    tx: Chain
    weight_decay: Hyper = hyper(low=0)

    def init_tree(self, params):
        return self.tx.init(params)

    def apply_tree(self, trees, state):
        updates, after = self.tx.update(trees.direction, state, trees.params, **trees.extra)
        h, distance = after.hyperparams[_BOUND], state.slots[_BOUND]["state"]["distance"]
        d = h["learning_rate"] * jnp.maximum(distance, h["initial"])
        share = trees.scalars(d.dtype).weight_decay * d
        return jax.tree.map(lambda u, p: u + share.astype(u.dtype) * p, updates, trees.params), after


_BOUND = "scale_by_distance_bound"


def mechanize(
    base_optimizer: optax.GradientTransformation,
    weight_decay: Hyper = 1e-2,
    eps: Hyper = 1e-8,
    s_init: Hyper = 1e-6,
    num_betas: int = 6,
) -> Chain:
    """optax.contrib.mechanize: an optimizer whose steps are made longer by a factor that is learned.

    Args:
        base_optimizer: a gradtx chain or an optax transformation, with a learning rate of 1.
        weight_decay: λ, which pulls the factor down.
        eps: ε.
        s_init: the first factor of each better.
        num_betas: how many betters there are.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.mechanize(optax.sgd(1.0)).rules]
    ['at_learned_rate']
    """
    return chain(rules.at_learned_rate(chain(base_optimizer), weight_decay, eps, s_init, betters=num_betas))
