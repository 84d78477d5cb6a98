"""Batch sizes: a run with each, and its descent step by step."""

from __future__ import annotations

from gradtx.workbench.batches.descent import descend
from gradtx.workbench.batches.picture import draw_batches
from gradtx.workbench.networks import Network
from gradtx.workbench.progress import Bar
from gradtx.workbench.runs.kind import RUNS, run
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.training import Data

__all__ = ["BATCHES", "STEPS"]

STEPS = 200
"""The first steps, after each of which the training loss is measured."""


def _run(settings: Settings, task: Task, network: Network, data: Data, bar: Bar) -> Run:
    done = run(settings, task, network, data, bar)
    tx = settings.optimizer(task.optimizer, done.learning_rate, task.batch_size, data.size)
    descent = descend(network, tx, data, steps=STEPS, batch_size=task.batch_size, seed=settings.seed)
    return done._replace(descent=descent)


BATCHES = RUNS._replace(one=_run, draw=draw_batches)
