"""Equations of rules in numpy, float64, written from the papers: of a row for each step, the rows that come out."""

from collections.abc import Callable

import numpy as np

Equation = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From gradients, a row for each step, and parameters that stay as they are, to the updates of all steps."""


def steps(g):
    """The number of each step, from 1 on, in a column."""
    return np.arange(1.0, len(g) + 1)[:, None]


def weighted(g, weight):
    """Row t is the sum over i ≤ t of weight(t, i) times row i: averages without recursion."""
    return np.stack([sum(weight(t, i) * g[i] for i in range(t + 1)) for t in range(len(g))])


def ema(g, decay):
    return weighted(g, lambda t, i: (1 - decay) * decay ** (t - i))


def heavy_ball(g, decay):
    return weighted(g, lambda t, i: decay ** (t - i))


def damped(g, decay, dampening):
    return weighted(g, lambda t, i: decay ** (t - i) * (1.0 if i == 0 else 1.0 - dampening))


def nadam_moment(g, decay, share):
    """Nadam's m̂, for a decay that share, a function of the number of the step, is a part of."""
    mu = decay * share(np.arange(1, len(g) + 2))
    product = np.cumprod(mu)
    past, present = mu[1:] / (1 - product[1:]), (1 - mu[:-1]) / (1 - product[:-1])
    return past[:, None] * ema(g, decay) + present[:, None] * g


def fed_back_maximum(squares, decay):
    """The maximum of what was and its average with each square."""
    v, rows = np.zeros_like(squares[0]), []
    for square in squares:
        v = np.maximum(decay * v + (1 - decay) * square, v)
        rows.append(v)
    return np.stack(rows)


def divide(u, d):
    return np.divide(u, d, out=np.zeros_like(u), where=d != 0)
