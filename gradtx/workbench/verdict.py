"""The problem of a training: look at the training images first, at the test images second."""

from __future__ import annotations

import math

import numpy as np

from gradtx.workbench.training import Measures

__all__ = ["ADVICE", "EXPLODING", "LARGEST_GAP", "TRAINED", "UNTRAINED", "VANISHING", "trained", "verdict"]

TRAINED = 0.95
"""A training accuracy below this is a problem of optimization, whatever the test accuracy is."""

LARGEST_GAP = 0.05
"""A test accuracy more than this below the training accuracy (5 percentage points) is a problem of generalization."""

EXPLODING = 30.0
"""A layer's gradient whose norm is above this before training, as for ``gradtx.diagnose``. Near 1 is usual."""

VANISHING = 0.01
"""A layer's gradient whose norm is below this part of the largest layer's before training. A tenth is usual."""

ADVICE = {
    "diverged": "the training loss is not finite, or higher than before training: lower the learning rate, or clip",
    "not trained enough": f"training accuracy below {100 * TRAINED:g} %: look at optimizer and network first",
    "badly initialised": f"trained, but test accuracy is more than {100 * LARGEST_GAP:g} points lower, and the gradient"
    " of a layer exploded or vanished before the first step: other initial weights first (--gain), then judge again",
    "overfitting": f"trained, but test accuracy is more than {100 * LARGEST_GAP:g} points lower, and the initial"
    " weights are not to blame: more data (--samples) or regularization (--weight-decay), not another optimizer",
    "good": f"training accuracy at least {100 * TRAINED:g} %, test accuracy at most {100 * LARGEST_GAP:g} points lower",
}
"""Each verdict, in the order in which they are considered, and what it means."""

UNTRAINED = ("diverged", "not trained enough")
"""The verdicts on what has a problem on the training images already."""


def verdict(measures: Measures) -> str:
    """A training in a word, one of ``ADVICE``: the first that applies to what was measured at its start and its end.

    Args:
        measures: of a whole training, with the axis of epochs; the first is from before training.

    >>> import numpy as np
    >>> end_well = np.array([0.1, 1.0])
    >>> verdict(Measures(np.array([2.3, 0.01]), end_well, np.array([2.3, 0.5]), np.array([0.1, 0.9]), np.ones((2, 4))))
    'overfitting'
    """
    before, after = measures.train_loss[0], measures.train_loss[-1]
    train, test = measures.train_accuracy[-1], measures.test_accuracy[-1]
    if not math.isfinite(after) or after > before:
        return "diverged"
    if train < TRAINED:
        return "not trained enough"
    if train - test <= LARGEST_GAP:
        return "good"
    least, most = np.min(measures.gradient_norms[0]), np.max(measures.gradient_norms[0])
    healthy = VANISHING * most <= least and most <= EXPLODING  # NaN is not
    return "overfitting" if healthy else "badly initialised"


def trained(losses: np.ndarray, accuracy: float) -> bool:
    """True if a training with these losses, by epoch, and this accuracy at the end has no problem on its own images."""
    nothing = np.zeros((1, 1))
    return verdict(Measures(losses, np.array([accuracy]), losses, np.array([accuracy]), nothing)) == "good"
