"""Sweeps: many trainings for each network and optimizer."""

from __future__ import annotations

from gradtx.workbench.kind import Keep, Kind
from gradtx.workbench.networks import Network
from gradtx.workbench.progress import Bar
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.sweeps.picture import draw_sweeps
from gradtx.workbench.sweeps.record import sweeps_record
from gradtx.workbench.sweeps.report import print_sweeps
from gradtx.workbench.sweeps.sweep import RATES, Sweep, sweep_rates
from gradtx.workbench.training import Data

__all__ = ["SWEEPS"]


def _sweep(settings: Settings, task: Task, network: Network, data: Data, bar: Bar, keep: Keep) -> None:
    def progress(done: Sweep) -> None:
        keep(done)
        bar.step(task, f"learning rate {done.table['learning_rate'][-1]:.2g}, seed {done.table['seed'][-1]}")

    sweep_rates(settings, task, network, data, progress)


SWEEPS = Kind(
    name="sweeps",
    unit="runs",
    steps=lambda settings: len(RATES) * settings.seeds,
    one=_sweep,
    result=lambda sweep: f"best learning rate {sweep.rates[sweep.best]:.2g}",
    report=print_sweeps,
    record=sweeps_record,
    draw=draw_sweeps,
)
