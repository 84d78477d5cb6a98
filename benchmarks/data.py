"""The problem: parameters to start from, and gradients, the same for all contestants."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CORES", "Data", "Shapes", "affordable", "available_memory", "gpt2", "parameters_of"]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Shapes = Sequence[tuple[int, ...]]

SHARE_OF_MEMORY = 0.7
"""Of the memory that is free, the most that a workload takes."""


class Data:
    """Parameters as small as a network's, and two gradients of another size in each element, all float32.

    Two, because a constant gradient hides most mistakes: Adam's steps are then η for any decay.
    """

    def __init__(self, shapes: Shapes):
        random = np.random.default_rng(0)
        self.shapes = tuple(shapes)
        self.start = [np.float32(0.02) * random.standard_normal(shape, np.float32) for shape in shapes]
        self.gradients = [
            {
                f"leaf_{i:04}": jnp.asarray(random.standard_normal(shape, np.float32))
                for i, shape in enumerate(self.shapes)
            }
            for _ in range(2)
        ]
        """jax arrays, which the others look at without copying."""

    def params(self) -> dict[str, jax.Array]:
        """A copy of the parameters to start from, as a tree."""
        return {name: jnp.array(x) for name, x in zip(self.gradients[0], self.start, strict=True)}

    @cached_property
    def norms(self) -> list[float]:
        """The L2 norm of each starting leaf."""
        return [float(np.linalg.norm(x)) for x in self.start]

    def release(self) -> None:
        """Let go of what only the check before the timing needs."""
        self.start.clear()
        del self.gradients[1:]


def parameters_of(shapes: Shapes) -> int:
    """The number of parameters in all."""
    return sum(int(np.prod(shape)) for shape in shapes)


def available_memory() -> int:
    """Bytes that can be taken without swapping; all there are, where the system does not tell."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def affordable(shapes: Shapes, contestants: int) -> bool:
    """Whether so many contestants, each with p, m and v, and what they share fit into the memory."""
    return 12 * (contestants + 2) * parameters_of(shapes) <= SHARE_OF_MEMORY * available_memory()


def gpt2(blocks: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> list[tuple[int, ...]]:
    """The leaves of GPT-2; of its small size if not told otherwise: 124,439,808 parameters in 148 leaves."""
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    perceptron = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *(norm + attention + norm + perceptron) * blocks, *norm]
