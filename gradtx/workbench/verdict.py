"""Which problem a training has: look at the training images first, at the test images second."""

from __future__ import annotations

import math

from gradtx.workbench.training import Measures

__all__ = ["ADVICE", "LARGEST_GAP", "TRAINED", "UNTRAINED", "verdict"]

TRAINED = 0.95
"""A training accuracy below this is a problem of optimization, whatever the test accuracy is."""

LARGEST_GAP = 0.05
"""A test accuracy more than this below the training accuracy (5 percentage points) is a problem of generalization."""

ADVICE = {
    "diverged": "the training loss is not finite, or higher than before training: lower the learning rate, or clip",
    "not trained enough": f"training accuracy below {100 * TRAINED:g} %: look at optimizer and network first",
    "overfitting": f"trained, but test accuracy is more than {100 * LARGEST_GAP:g} points lower:"
    " more data or regularization, not another optimizer",
    "good": f"training accuracy at least {100 * TRAINED:g} %, test accuracy at most {100 * LARGEST_GAP:g} points lower",
}
"""Each verdict, in the order in which they are considered, and what it means."""

UNTRAINED = ("diverged", "not trained enough")
"""The verdicts that call for a look at the gradients."""


def verdict(measures: Measures) -> str:
    """A training in a word, one of ``ADVICE``: the first that applies to what was measured at the end.

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
    return "overfitting" if train - test > LARGEST_GAP else "good"
