"""A finished run of a comparison, as the report, the picture and the JSON file show it."""

from __future__ import annotations

from typing import NamedTuple

from gradtx.workbench.runs.health import Health
from gradtx.workbench.training import Measures
from gradtx.workbench.verdict import verdict

__all__ = ["Run"]


class Run(NamedTuple):
    """One network trained with one optimizer.

    Attributes:
        network, optimizer: their names in ``ACTIVATIONS`` and ``RECIPES``.
        learning_rate: as used.
        chain: the optimizer as text.
        measures: numpy arrays (epochs + 1, ...), as in ``History``.
        health: of the gradients and updates at the first step and at the last; None if they were not watched.
        seconds: wall-clock time, compilation included.
    """

    network: str
    optimizer: str
    learning_rate: float
    chain: str
    measures: Measures
    health: Health | None
    seconds: float

    @property
    def verdict(self) -> str:
        """Which problem it has, in a word."""
        return verdict(self.measures)
