"""Runs: one training for each network and optimizer."""

from __future__ import annotations

from gradtx.workbench.kind import Kind
from gradtx.workbench.networks import Network
from gradtx.workbench.progress import Bar
from gradtx.workbench.recipes import RECIPES, make_optimizer
from gradtx.workbench.runs.health import watch
from gradtx.workbench.runs.picture import draw
from gradtx.workbench.runs.record import runs_record
from gradtx.workbench.runs.report import print_report
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.training import Data, train
from gradtx.workbench.verdict import UNTRAINED, verdict

__all__ = ["RUNS"]


def _run(settings: Settings, name: str, network: Network, optimizer: str, data: Data, bar: Bar) -> Run:
    rate = settings.learning_rate or RECIPES[optimizer].learning_rate
    tx = make_optimizer(optimizer, rate, settings.clip_norm, settings.clip_layer, settings.clip_value)
    history = train(
        network,
        tx,
        data,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=lambda epoch, measures: bar.step(name, optimizer, f"training loss {measures.train_loss:.2e}"),
    )
    looks = settings.health or verdict(history.measures) in UNTRAINED
    health = watch(network, tx, data, settings) if looks else None
    return Run(name, optimizer, rate, str(tx), history.measures, health, history.seconds)


RUNS = Kind(
    name="runs",
    unit="epochs",
    steps=lambda settings: settings.epochs,
    one=_run,
    result=lambda run: f"training loss {run.measures.train_loss[-1]:.2e}",
    report=print_report,
    record=runs_record,
    draw=draw,
)
