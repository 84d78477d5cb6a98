"""The progress of a comparison, on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradtx.workbench.terminal import Lenient, say

__all__ = ["Bar"]


class Bar:
    """A progress bar over everything to do, on stderr; where that is no terminal, a line for each optimizer.

    Args:
        total: the number of steps of the bar.
        unit: what they are.
    """

    def __init__(self, total: int, unit: str):
        console = Console(file=cast(IO[str], Lenient(sys.stderr)))
        self._quiet = not console.is_terminal
        columns = (BarColumn(24), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(), "{task.description}")
        self._progress = Progress(*columns, console=console, transient=True, disable=self._quiet)
        self._task = self._progress.add_task("compiling", total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, task: object) -> None:
        """Say what is being compiled."""
        self._progress.update(self._task, description=f"{task}: compiling")

    def step(self, task: object, text: str) -> None:
        """Move on by one step, and say what came out."""
        self._progress.update(self._task, advance=1, description=f"{task}: {text}")

    def finish(self, task: object, text: str, seconds: float) -> None:
        """Say that a task is done, where no bar shows it."""
        if self._quiet:
            say(f"{task}: {text}, {seconds:.1f} s")
