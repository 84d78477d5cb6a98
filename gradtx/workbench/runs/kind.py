"""Runs: one training for each network and optimizer."""

from __future__ import annotations

from gradtx.workbench.kind import Keep, Kind
from gradtx.workbench.networks import Network
from gradtx.workbench.progress import Bar
from gradtx.workbench.runs.health import watch
from gradtx.workbench.runs.picture import draw
from gradtx.workbench.runs.record import runs_record
from gradtx.workbench.runs.report import print_report
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.training import Data, train
from gradtx.workbench.verdict import verdict

__all__ = ["RUNS", "run"]


def run(settings: Settings, task: Task, network: Network, data: Data, bar: Bar) -> Run:
    """Train a network with an optimizer, and once more with its gradients watched if something went wrong."""
    rate = settings.rate(task)
    tx = settings.optimizer(task.optimizer, rate, task.batch_size, data.size)
    history = train(
        network,
        tx,
        data,
        epochs=settings.epochs,
        batch_size=task.batch_size,
        seed=settings.seed,
        progress=lambda epoch, seen: bar.step(task, f"training loss {seen.train_loss:.2e}"),
    )
    looks = settings.health or verdict(history.measures) != "good"
    health = watch(network, tx, data, settings.epochs, task.batch_size, settings.seed) if looks else None
    return Run(*task, rate, str(tx), history.measures, history.steps, health, history.seconds)


def _one(settings: Settings, task: Task, network: Network, data: Data, bar: Bar, keep: Keep) -> None:
    keep(run(settings, task, network, data, bar))


RUNS = Kind(
    name="runs",
    unit="epochs",
    steps=lambda settings: settings.epochs,
    one=_one,
    result=lambda run: f"training loss {run.measures.train_loss[-1]:.2e}",
    report=print_report,
    record=runs_record,
    draw=draw,
)
