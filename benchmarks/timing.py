"""Times that can be compared on a noisy machine: contestants take turns, and ratios are of the same turn."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

__all__ = ["Against", "Contestant", "Steps", "Summary", "Takes", "interleave", "ratio", "summary"]


class Contestant(Protocol):
    """Somebody who can be measured.

    Attributes:
        details: what is known besides: seconds or bytes by name.
    """

    details: dict[str, float]

    def measure(self) -> float:
        """One measurement, in the unit of the workload."""
        ...


class Takes(Protocol):
    """Somebody who takes steps."""

    def step(self) -> None:
        """One step, to its end."""
        ...


class Summary(NamedTuple):
    """A median between its quartiles, and the smallest."""

    median: float
    low: float
    high: float
    least: float


def summary(samples: Sequence[float]) -> Summary:
    """The median, the quartiles and the smallest.

    >>> summary([4.0, 1.0, 2.0, 3.0, 5.0])
    Summary(median=3.0, low=2.0, high=4.0, least=1.0)
    """
    least, low, median, high = np.quantile(samples, [0, 0.25, 0.5, 0.75]).tolist()
    return Summary(median, low, high, least)


def ratio(samples: Sequence[float], others: Sequence[float]) -> Summary:
    """How many times the others' samples these are, turn by turn: a load that both meet cancels.

    >>> ratio([2.0, 20.0, 4.0], [1.0, 10.0, 1.0])
    Summary(median=2.0, low=2.0, high=3.0, least=2.0)
    """
    return summary([a / b for a, b in zip(samples, others, strict=True)])


def interleave(
    contestants: Mapping[str, Contestant], rounds: int, tick: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Measure each contestant once in every round; each round begins with the next one.

    Args:
        contestants: by name.
        rounds: measurements of each.
        tick: called with a contestant's name after each of its measurements.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(contestants[name].measure())
            tick(name)
    return samples


class Steps:
    """Steps of one contestant: a measurement is the mean of a burst of them, after one that is not counted.

    That one pays for what the contestant before has left behind: caches, and threads that still spin.

    Args:
        takes: who takes the steps.
        burst: seconds that a measurement takes at least.
        size: how many steps of training one call of ``step`` takes.
        details: what is known besides.
    """

    def __init__(self, takes: Takes, burst: float, size: int = 1, details: Mapping[str, float] | None = None):
        self.takes, self._size = takes, size
        self.details: dict[str, float] = dict(details or {})
        takes.step()
        self._calls = max(1, math.ceil(burst / max(min(self._time(1) for _ in range(2)), 1e-7)))

    def measure(self) -> float:
        """Seconds for one step."""
        self.takes.step()
        return self._time(self._calls) / (self._calls * self._size)

    def _time(self, calls: int) -> float:
        step = self.takes.step
        gc.disable()
        try:
            begin = time.perf_counter()
            for _ in range(calls):
                step()
            return time.perf_counter() - begin
        finally:
            gc.enable()


class Against:
    """One contestant beside another: a measurement is how many times the other's time it takes, turn by turn.

    Args:
        ours: the one.
        theirs: the other, which it is divided by.
    """

    def __init__(self, ours: Contestant, theirs: Contestant):
        self._ours, self._theirs = ours, theirs
        both = (own.details.get("trace_and_compile_s") for own in (ours, theirs))
        one, other = both
        self.details: dict[str, float] = {} if one is None or not other else {"compile_ratio": one / other}

    def measure(self) -> float:
        """The ratio of one measurement of each."""
        return self._ours.measure() / self._theirs.measure()
