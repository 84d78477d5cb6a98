"""Batch sizes: a run with each, and its descent step by step."""

from __future__ import annotations

from gradtx.workbench.batches.descent import descend
from gradtx.workbench.batches.picture import draw_batches
from gradtx.workbench.kind import Keep
from gradtx.workbench.networks import Network
from gradtx.workbench.progress import Bar
from gradtx.workbench.runs.kind import RUNS, run
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.training import Data

__all__ = ["BATCHES", "STEPS"]

STEPS = 200
"""The first steps, after each of which the training loss is measured."""


def _one(settings: Settings, task: Task, network: Network, data: Data, bar: Bar, keep: Keep) -> None:
    done = run(settings, task, network, data, bar)
    tx = settings.optimizer(task.optimizer, done.learning_rate, task.batch_size, data.size)
    descent = descend(network, tx, data, steps=STEPS, batch_size=task.batch_size, seed=settings.seed)
    keep(done._replace(descent=descent))


BATCHES = RUNS._replace(one=_one, draw=draw_batches)
