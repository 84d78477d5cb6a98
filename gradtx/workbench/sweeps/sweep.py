"""An optimizer with many learning rates and seeds, and which of the learning rates train."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx
from gradtx import SweepTable
from gradtx.workbench.networks import Network
from gradtx.workbench.recipes import FACTOR, recipe_of
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.training import Data, begin, measure, run_epoch
from gradtx.workbench.verdict import trained

__all__ = ["RATES", "Range", "Sweep", "sweep_rates"]

RATES = np.geomspace(1e-5, 10, 13)
"""The learning rates that every optimizer is tried with: two in each decade."""


class Range(NamedTuple):
    """Neighbouring learning rates that all train.

    Attributes:
        lowest, highest: of them.
        open: whether the next lower or the next higher one was not tried.
    """

    lowest: float
    highest: float
    open: bool

    @property
    def factor(self) -> float:
        """The highest divided by the lowest: how forgiving the optimizer is."""
        return self.highest / self.lowest


class Sweep(NamedTuple):
    """One network trained with one optimizer, with every learning rate and seed.

    Attributes:
        network, optimizer: their names in ``ACTIVATIONS`` and ``RECIPES``.
        chain: the optimizer as text, with a learning rate that suits.
        table: a row for each finished training, by learning rate; its results are named as in ``Measures``,
            ``train_loss/0`` from before training and ``train_loss/n`` from after epoch n, the others from the end.
        seconds: wall-clock time, compilation included.
    """

    network: str
    optimizer: str
    chain: str
    table: SweepTable
    seconds: float

    @property
    def seeds(self) -> int:
        """The number of seeds: those of the first learning rate."""
        rates = self.table["learning_rate"]
        return int(np.sum(rates == rates[0]))

    @property
    def rates(self) -> np.ndarray:
        """The learning rates that are done with every seed, from the lowest."""
        return self.by_rate("learning_rate")[:, 0]

    def by_rate(self, result: str) -> np.ndarray:
        """A result as (learning rates, seeds)."""
        column = self.table[result]
        return column[: len(column) // self.seeds * self.seeds].reshape(-1, self.seeds)

    @property
    def curves(self) -> np.ndarray:
        """Training losses before training and after each epoch: (learning rates, seeds, epochs + 1)."""
        names = [name for name in self.table.results if name.startswith("train_loss/")]
        return np.stack([self.by_rate(name) for name in names], axis=-1)

    @property
    def losses(self) -> np.ndarray:
        """Training losses at the end: (learning rates, seeds), infinite where they are not finite."""
        final = self.curves[..., -1]
        return np.where(np.isfinite(final), final, np.inf)

    @property
    def best(self) -> int:
        """The place of the learning rate whose training loss at the end is lowest, on average over the seeds."""
        return int(np.argmin(self.losses.mean(axis=1)))

    @property
    def trains(self) -> np.ndarray:
        """For each learning rate, whether the network is trained with every seed, by the ``verdict`` on it."""
        finals = self.by_rate("train_accuracy")
        return np.array([all(map(trained, *rows)) for rows in zip(self.curves, finals, strict=True)])

    @property
    def range(self) -> Range | None:
        """The most neighbouring learning rates that train; None if none does."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.trains, [False]])))
        starts, ends = edges[::2], edges[1::2]
        if not starts.size:
            return None
        widest = int(np.argmax(ends - starts))
        start, end = int(starts[widest]), int(ends[widest])
        return Range(float(self.rates[start]), float(self.rates[end - 1]), start == 0 or end == len(self.rates))


def sweep_rates(
    settings: Settings, task: Task, network: Network, data: Data, progress: Callable[[Sweep], None]
) -> Sweep:
    """Train a network with every learning rate of ``RATES``, and with every seed.

    Args:
        settings: of the comparison.
        task: the names of network and optimizer, and the batch size.
        network: what to train.
        data: what to train and test on.
        progress: called after each training with what is done.
    """
    started = time.perf_counter()
    data = jax.device_put(data)
    recipe = recipe_of(task.optimizer)
    points = [recipe.point(float(rate)) for rate in RATES]
    tx = settings.optimizer(task.optimizer, recipe.learning_rate, task.batch_size, data.size)

    def done(table: SweepTable) -> Sweep:
        """The sweep so far, with the learning rates in the first column of its table."""
        rates = np.repeat(RATES, settings.seeds)[: len(table)]
        others = {name: table[name] for name in table.columns if name not in points[0]}
        table = SweepTable({"learning_rate": rates} | others, table.results)
        return Sweep(task.network, task.optimizer, str(tx), table, time.perf_counter() - started)

    table = gradtx.sweep(
        lambda tx, key: _train(network, tx, data, settings.epochs, task.batch_size, key),
        with_factor(tx) if FACTOR in points[0] else tx,
        points,
        range(settings.seed, settings.seed + settings.seeds),
        chunk=1,  # so that each is what ``train`` gives, on any device
        progress=lambda table, rows: progress(done(table)),
    )
    return done(table)


def with_factor(tx: gradtx.Chain) -> gradtx.Chain:
    """A chain whose updates are scaled by a factor, 1 at first, in front of a rule that has to be the last."""
    ends = sum(rule.last for rule in tx.rules)
    split = len(tx.rules) - ends
    return gradtx.chain(*tx.rules[:split], gradtx.scale(1.0, name="rate"), *tx.rules[split:])


def _train(network: Network, tx: Any, data: Data, epochs: int, batch_size: int, key: jax.Array) -> dict[str, Any]:
    """The work of ``train`` as one program: the training losses one by one, and the other measures at the end."""
    params, state, shuffle_key = begin(network, tx, key)
    before = measure(network, params, data)

    def one(carry: tuple[Any, Any], epoch: jax.Array) -> tuple[tuple[Any, Any], Any]:
        key = jax.random.fold_in(shuffle_key, epoch)
        params, state, evaluated, *_ = run_epoch(network, tx, batch_size, *carry, data, key)
        return (params, state), measure(network, evaluated, data)._replace(gradient_norms=None)  # not computed either

    _, after = jax.lax.scan(one, (params, state), jnp.arange(1, epochs + 1))
    return {
        "train_loss": [before.train_loss, *after.train_loss],
        "train_accuracy": after.train_accuracy[-1],
        "test_loss": after.test_loss[-1],
        "test_accuracy": after.test_accuracy[-1],
    }
