"""The main job: every optimizer on every network, then a table, a picture and, if asked for, the numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradtx import SweepTable
from gradtx.workbench.data import load_digits
from gradtx.workbench.files import write_whole
from gradtx.workbench.health import watch
from gradtx.workbench.networks import Network
from gradtx.workbench.picture import draw
from gradtx.workbench.recipes import RECIPES, make_optimizer
from gradtx.workbench.record import runs_record, sweeps_record, to_json
from gradtx.workbench.report import Bar, print_report
from gradtx.workbench.runs import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweep_picture import draw_sweeps
from gradtx.workbench.sweep_report import print_sweeps
from gradtx.workbench.sweeps import RATES, Sweep, sweep_rates
from gradtx.workbench.training import Data, train
from gradtx.workbench.verdict import UNTRAINED, verdict

__all__ = ["compare"]

INTERRUPTED = 130
"""The exit status after Ctrl-C, as of a process that the signal ended."""


def compare(settings: Settings) -> int:
    """Train, print the table, write the files. Ctrl-C ends the training, and what is finished is shown.

    Returns:
        The exit status: 0, 1 if a file could not be written after all, or 130 if interrupted.

    Raises:
        Impossible: before anything is trained, for settings that cannot work.
    """
    data = load_digits()
    images, inputs = np.shape(data.train_images)
    classes = len(np.unique(data.train_labels))
    networks = {name: settings.network(name, inputs, classes) for name in settings.networks}
    settings.check(images, list(networks.values()))
    kind = SWEEPS if settings.sweep else RUNS
    number = len(networks) * len(settings.optimizers)
    done: list[Any] = []
    interrupted = False
    try:
        with Bar(number * kind.steps(settings), kind.unit) as bar:
            for name, network in networks.items():
                for optimizer in settings.optimizers:
                    bar.start(name, optimizer)
                    done.append(kind.one(settings, name, network, optimizer, data, bar))
                    bar.finish(name, optimizer, kind.result(done[-1]), done[-1].seconds)
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(done)} of {number} {kind.name} finished", file=sys.stderr)
    written = not done or _show(kind, settings, done, interrupted)
    return INTERRUPTED if interrupted else int(not written)


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


def _sweep(settings: Settings, name: str, network: Network, optimizer: str, data: Data, bar: Bar) -> Sweep:
    def progress(done: SweepTable) -> None:
        bar.step(name, optimizer, f"learning rate {done['learning_rate'][-1]:.2g}, seed {done['seed'][-1]}")

    return sweep_rates(settings, name, network, optimizer, data, progress)


class Kind(NamedTuple):
    """A kind of comparison.

    Attributes:
        name: what is done with one network and one optimizer, many of them.
        unit: the steps that each of those takes.
        steps: how many of them, by the settings.
        one: does one.
        result: what came out, in a few words.
        report: prints all.
        record: all as it is written to the JSON file.
        draw: all as a picture.
    """

    name: str
    unit: str
    steps: Callable[[Settings], int]
    one: Callable[..., Any]
    result: Callable[[Any], str]
    report: Callable[[Settings, Sequence[Any]], None]
    record: Callable[[Sequence[Any]], dict[str, Any]]
    draw: Callable[[Settings, Sequence[Any]], bytes]


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


def _show(kind: Kind, settings: Settings, done: Sequence[Any], interrupted: bool) -> bool:
    kind.report(settings, done)
    try:
        if settings.json is not None:
            write_whole(settings.json, to_json(settings, kind.record(done), interrupted=interrupted).encode())
            print(f"Numbers: {settings.json}")
        write_whole(settings.output, kind.draw(settings, done))
        print(f"Picture: {settings.output}")
    except OSError as error:
        print(f"gradtx compare: {error}", file=sys.stderr)
        return False
    return True
