"""The main job: every optimizer on every network, then a table, a picture and, if asked for, the numbers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from rich.console import Console

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
from gradtx.workbench.signals import ending, status
from gradtx.workbench.sweep_picture import draw_sweeps
from gradtx.workbench.sweep_report import print_sweeps
from gradtx.workbench.sweeps import RATES, Sweep, sweep_rates
from gradtx.workbench.terminal import Page, say, show
from gradtx.workbench.training import Data, train
from gradtx.workbench.verdict import UNTRAINED, verdict

__all__ = ["compare"]


def compare(settings: Settings) -> int:
    """Train, write the files, print the table. Ctrl-C, TERM and HUP end the training, and what is finished is kept.

    Files come first, since the terminal may be gone; each by itself, since one may be impossible.

    Returns:
        The exit status: 0; 1 if a file or the table could not be written after all; 128 and the number of the signal
        that ended the training, or that of SIGPIPE if nobody reads the table.

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
    with ending() as signals:
        interrupted = True
        try:
            with Bar(number * kind.steps(settings), kind.unit) as bar:
                for name, network in networks.items():
                    for optimizer in settings.optimizers:
                        bar.start(name, optimizer)
                        done.append(kind.one(settings, name, network, optimizer, data, bar))
                        bar.finish(name, optimizer, kind.result(done[-1]), done[-1].seconds)
                        signals.check()
            interrupted = False
        except KeyboardInterrupt:
            signals.signal = signals.signal or signal.SIGINT
            say(f"interrupted: {len(done)} of {number} {kind.name} finished")
        finally:  # also after an error, which goes on from here
            signals.hold()
            problem = _keep(kind, settings, done, interrupted) if done else 0
        return problem if signals.signal is None else status(signals.signal)


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
    report: Callable[[Settings, Sequence[Any], Console], None]
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


def _keep(kind: Kind, settings: Settings, done: Sequence[Any], interrupted: bool) -> int:
    """Write the files, then the table; the exit status, that of the first problem."""
    problems, written = [], []

    def write(what: str, path: Path, content: Callable[[], bytes]) -> None:
        try:
            write_whole(path, content())
            written.append(f"{what}: {path}\n")
        except OSError as error:
            say(f"gradtx compare: {path} cannot be written: {error.strerror or error}")
            problems.append(1)

    if settings.json is not None:
        write("Numbers", settings.json, lambda: to_json(settings, kind.record(done), interrupted=interrupted))
    write("Picture", settings.output, lambda: kind.draw(settings, done))
    page = Page(sys.stdout)
    kind.report(settings, done, Console(file=cast(IO[str], page)))
    try:
        show(page.text + "".join(written))
    except BrokenPipeError:
        problems.append(status(signal.SIGPIPE))  # not on Windows, and neither is this error
    except OSError as error:
        say(f"gradtx compare: the table cannot be shown: {error.strerror or error}")
        problems.append(1)
    return next(iter(problems), 0)
