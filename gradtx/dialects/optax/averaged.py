"""optax's optimizers that evaluate an average of their iterates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optax

from gradtx import rules
from gradtx._chain import Chain, chain
from gradtx.optimizers._parts import decoupled, derived
from gradtx.rules.base import Hyper, Rule

__all__ = ["schedule_free_adamw", "schedule_free_sgd"]


def _schedule_free(
    direction: Sequence[Rule], learning_rate: Hyper, warmup_steps: int | None, b1: Hyper, power: float, state_dtype: Any
) -> Chain:
    """The direction, learning rate with warm-up, average weighted by the largest rate, which is read a step ahead."""
    if isinstance(power, bool) or not isinstance(power, int | float) or power < 0:
        raise ValueError(f"optax: weight_lr_power must be a number of 0 or more, found {power!r}")
    if warmup_steps is not None:
        learning_rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)  # pyright: ignore[reportArgumentType]
    ahead = learning_rate
    if callable(learning_rate):
        schedule = learning_rate
        ahead = lambda count: schedule(count + 1)  # noqa: E731
    weight = ahead if power == 2 else derived(lambda eta: eta ** (power / 2), ahead)
    average = rules.average_iterates(pull=b1, learning_rate=weight, state_dtype=state_dtype)
    return chain(*direction, rules.scale_by_learning_rate(learning_rate), average)


def schedule_free_sgd(
    learning_rate: Hyper = 1.0,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    weight_decay: Hyper | None = None,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> Chain:
    """optax.contrib.schedule_free_sgd: [decay,] learning rate, average of the iterates.

    ``evaluation_point(state, params)`` is what optax calls ``schedule_free_eval_params``.

    Args:
        learning_rate: η.
        warmup_steps: the length of a linear warm-up from 0, or None.
        b1: where between iterates (0) and average (1) the parameters are.
        weight_decay: λ, or None.
        weight_lr_power: the power of the largest rate that iterates are weighted by, ≥ 0.
        state_dtype: the dtype that the average is held in (as an offset; optax holds the iterate); None: the
            parameters'.

    Raises:
        ValueError: for a negative power.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.schedule_free_sgd().rules]
    ['scale_by_learning_rate', 'average_iterates']
    """
    decay = [] if weight_decay is None else [rules.add_decayed_weights(weight_decay)]
    return _schedule_free(decay, learning_rate, warmup_steps, b1, weight_lr_power, state_dtype)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: float = 2.0,
    state_dtype: Any = None,
) -> Chain:
    """optax.contrib.schedule_free_adamw: RMS, debias, division, [decay,] learning rate, average of the iterates.

    Args:
        learning_rate, warmup_steps, b1, weight_lr_power, state_dtype: as in ``schedule_free_sgd``.
        b2: the decay of the second moment.
        eps: ε outside the root.
        weight_decay: λ.

    Raises:
        ValueError: for a negative power.

    >>> from gradtx.dialects import optax
    >>> [rule.label for rule in optax.schedule_free_adamw().rules]
    ['rms', 'debias', 'precondition', 'scale_by_learning_rate', 'average_iterates']
    """
    direction = [rules.rms(b2), rules.debias(), rules.precondition(eps), *decoupled(weight_decay, None)]
    return _schedule_free(direction, learning_rate, warmup_steps, b1, weight_lr_power, state_dtype)
