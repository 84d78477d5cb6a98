"""The main job: every optimizer on every network, then a table, a picture and, if asked for, the numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from gradtx.workbench.data import load_digits
from gradtx.workbench.files import write_whole
from gradtx.workbench.health import watch
from gradtx.workbench.networks import Network
from gradtx.workbench.picture import draw
from gradtx.workbench.recipes import RECIPES, make_optimizer
from gradtx.workbench.record import to_json
from gradtx.workbench.report import Bar, print_report
from gradtx.workbench.runs import Run
from gradtx.workbench.settings import Settings
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
    runs: list[Run] = []
    interrupted = False
    try:
        with Bar(len(networks) * len(settings.optimizers) * settings.epochs) as bar:
            for name, network in networks.items():
                for optimizer in settings.optimizers:
                    runs.append(_run(settings, name, network, optimizer, data, bar))
                    bar.finish(runs[-1])
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(runs)} of {len(networks) * len(settings.optimizers)} runs finished", file=sys.stderr)
    written = not runs or _show(settings, runs, interrupted)
    return INTERRUPTED if interrupted else int(not written)


def _run(settings: Settings, name: str, network: Network, optimizer: str, data: Data, bar: Bar) -> Run:
    rate = settings.learning_rate or RECIPES[optimizer].learning_rate
    tx = make_optimizer(optimizer, rate, settings.clip_norm, settings.clip_layer, settings.clip_value)
    bar.start(name, optimizer)
    history = train(
        network,
        tx,
        data,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=lambda epoch, measures: bar.epoch(name, optimizer, measures),
    )
    looks = settings.health or verdict(history.measures) in UNTRAINED
    health = watch(network, tx, data, settings) if looks else None
    return Run(name, optimizer, rate, str(tx), history.measures, health, history.seconds)


def _show(settings: Settings, runs: Sequence[Run], interrupted: bool) -> bool:
    print_report(settings, runs)
    try:
        if settings.json is not None:
            write_whole(settings.json, to_json(settings, runs, interrupted=interrupted).encode())
            print(f"Numbers: {settings.json}")
        write_whole(settings.output, draw(settings, runs))
        print(f"Picture: {settings.output}")
    except OSError as error:
        print(f"gradtx compare: {error}", file=sys.stderr)
        return False
    return True
