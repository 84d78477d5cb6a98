"""A finished run of a comparison, as the report, the picture and the JSON file show it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradtx.workbench.runs.health import Health
from gradtx.workbench.training import Measures, Steps
from gradtx.workbench.verdict import verdict

__all__ = ["FIRST_STEPS", "Run"]

FIRST_STEPS = 50
"""The first steps of a training, which are shown one by one."""


class Run(NamedTuple):
    """One network trained with one optimizer.

    Attributes:
        network, optimizer: their names in ``ACTIVATIONS`` and ``RECIPES``.
        batch_size: images in a mini-batch.
        learning_rate: as used.
        chain: the optimizer as text.
        measures: numpy arrays (epochs + 1, ...), as in ``History``.
        steps: numpy arrays (steps, ...), likewise.
        health: of the gradients and updates at the first step and at the last; None if they were not watched.
        seconds: wall-clock time, compilation included.
        descent: training losses over all images before and after each of the first steps, float32; None if they were
            not measured.
    """

    network: str
    optimizer: str
    batch_size: int
    learning_rate: float
    chain: str
    measures: Measures
    steps: Steps
    health: Health | None
    seconds: float
    descent: np.ndarray | None = None

    @property
    def verdict(self) -> str:
        """The problem of the training, in a word."""
        return verdict(self.measures)

    @property
    def end(self) -> int | None:
        """The first step whose mini-batch had a loss that is not finite, from 1; None if there is none."""
        lost = np.flatnonzero(~np.isfinite(self.steps.loss))
        return int(lost[0]) + 1 if lost.size else None
