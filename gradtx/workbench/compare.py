"""The main job: every optimizer on every network, then a table, a picture and, if asked for, the numbers."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from rich.console import Console

from gradtx.workbench.batches.kind import BATCHES
from gradtx.workbench.data import TRAINING_IMAGES, load_digits
from gradtx.workbench.files import write_whole
from gradtx.workbench.kind import Kind
from gradtx.workbench.progress import Bar
from gradtx.workbench.record import to_json
from gradtx.workbench.runs.kind import RUNS
from gradtx.workbench.settings import Settings, Task
from gradtx.workbench.signals import ending, status
from gradtx.workbench.sweeps.kind import SWEEPS
from gradtx.workbench.terminal import Page, say, show

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
    data = load_digits(settings.samples)
    inputs, classes = np.shape(data.test_images)[1], len(np.unique(data.test_labels))
    networks = {name: settings.network(name, inputs, classes) for name in settings.networks}
    settings.check(TRAINING_IMAGES, list(networks.values()))
    kind = SWEEPS if settings.sweep else BATCHES if len(settings.batch_sizes) > 1 else RUNS
    number, finished = len(settings.tasks), 0
    done: dict[Task, Any] = {}
    with ending() as signals:
        interrupted = True
        try:
            with Bar(number * kind.steps(settings), kind.unit) as bar:
                for task in settings.tasks:
                    bar.start(task)
                    keep = functools.partial(done.__setitem__, task)
                    kind.one(settings, task, networks[task.network], data, bar, keep)
                    finished += 1
                    bar.finish(task, kind.result(done[task]), done[task].seconds)
                    signals.check()
            interrupted = False
        except KeyboardInterrupt:
            signals.signal = signals.signal or signal.SIGINT
            part = ", and a part of the next" if len(done) > finished else ""
            say(f"interrupted: {finished} of {number} {kind.name} finished{part}")
        finally:  # also after an error, which goes on from here
            signals.hold()
            problem = _write(kind, settings, list(done.values()), interrupted) if done else 0
        return problem if signals.signal is None else status(signals.signal)


def _write(kind: Kind, settings: Settings, done: Sequence[Any], interrupted: bool) -> int:
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
