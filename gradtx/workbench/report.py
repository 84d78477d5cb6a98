"""A comparison as text: a bar while it runs, a table when it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import IO, cast

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gradtx.workbench.networks import ACTIVATIONS
from gradtx.workbench.recipes import RECIPES
from gradtx.workbench.runs import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.terminal import Lenient, say
from gradtx.workbench.verdict import ADVICE

__all__ = ["Bar", "print_report", "table_of_numbers"]

_COLOURS = {"diverged": "red", "not trained enough": "yellow", "overfitting": "yellow", "good": "green"}


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

    def start(self, network: str, optimizer: str) -> None:
        """Say what is being compiled."""
        self._progress.update(self._task, description=f"{_title(network, optimizer)}: compiling")

    def step(self, network: str, optimizer: str, text: str) -> None:
        """Move on by one step, and say what came out."""
        self._progress.update(self._task, advance=1, description=f"{_title(network, optimizer)}: {text}")

    def finish(self, network: str, optimizer: str, text: str, seconds: float) -> None:
        """Say that an optimizer is done, where no bar shows it."""
        if self._quiet:
            say(f"{_title(network, optimizer)}: {text}, {seconds:.1f} s")


def _title(network: str, optimizer: str) -> str:
    return f"{RECIPES[optimizer].title} on {ACTIVATIONS[network].title}"


def print_report(settings: Settings, runs: Sequence[Run], console: Console | None = None) -> None:
    """A table for each network, and what the verdicts in it mean; on stdout, if no console is given."""
    console = console or Console()
    for network in settings.networks:
        of_network = [run for run in runs if run.network == network]
        if of_network:
            console.print(_table(settings, network, of_network))
            console.print()
            _print_health(console, of_network)
    for word in ADVICE:
        if any(run.verdict == word for run in runs):
            console.print(f"[{_COLOURS[word]}]{word}[/]: {ADVICE[word]}", highlight=False)


def _print_health(console: Console, runs: Sequence[Run]) -> None:
    """What is wrong with the gradients that were watched: one line for each problem, and what to try."""
    by_problem: dict[tuple[str, str, str], list[str]] = {}
    advice: dict[str, str] = {}
    seen = {run.optimizer: run.health for run in runs if run.health is not None}
    if not seen:
        return
    for optimizer, health in seen.items():
        for moment, diagnosis in zip(("first", "last"), health.diagnoses(), strict=True):
            for finding in diagnosis:
                key = (moment, finding.problem, _some(finding.leaves))
                by_problem.setdefault(key, []).append(RECIPES[optimizer].title)
                advice[finding.problem] = finding.advice
    if not by_problem:
        console.print("gradient health: no findings", highlight=False)
    else:
        table = Table(title="gradient health", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.show_edge = table.pad_edge = False
        for head in ["step", "problem", "in", "with"]:
            table.add_column(head, no_wrap=head in ("step", "problem"))
        for (moment, problem, leaves), titles in sorted(by_problem.items()):
            everybody = len(titles) == len(runs) > 1
            table.add_row(moment, problem, leaves, "all optimizers" if everybody else ", ".join(titles))
        console.print(table)
        for problem, text in advice.items():
            console.print(f"[yellow]{problem}[/]: {text}", highlight=False)
    console.print()


def _some(leaves: Sequence[str]) -> str:
    """The worst two, and how many more."""
    return ", ".join(leaves[:2]) + (f" and {len(leaves) - 2} more" if len(leaves) > 2 else "")


def table_of_numbers(title: str, heads: Sequence[str]) -> Table:
    """An empty table of optimizers, and a column of numbers for each head, that fits into 80 columns."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    table.add_column("optimizer", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _table(settings: Settings, network: str, runs: Sequence[Run]) -> Table:
    title = f"{settings.title(network)}, {settings.epochs} epoch{'s' * (settings.epochs > 1)}"
    table = table_of_numbers(
        title, ["learning\nrate", "training\nloss", "training\naccuracy", "test\nloss", "test\naccuracy"]
    )
    table.add_column("verdict", no_wrap=True)
    for run in runs:
        m = run.measures
        table.add_row(
            RECIPES[run.optimizer].title,
            f"{run.learning_rate:g}",
            f"{m.train_loss[-1]:.2e}",
            f"{100 * m.train_accuracy[-1]:.1f} %",
            f"{m.test_loss[-1]:.2e}",
            f"{100 * m.test_accuracy[-1]:.1f} %",
            f"[{_COLOURS[run.verdict]}]{run.verdict}[/]",
        )
    return table
