"""Runs as text: a table, and what is wrong with the gradients."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from gradtx.workbench.recipes import recipe_of
from gradtx.workbench.runs.run import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.table import table_of_numbers
from gradtx.workbench.verdict import ADVICE

__all__ = ["print_report"]

_COLOURS = {word: "yellow" for word in ADVICE} | {"diverged": "red", "good": "green"}


def print_report(settings: Settings, runs: Sequence[Run], console: Console) -> None:
    """A table for each network, and what the verdicts in it mean."""
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
    """The problems of the gradients that were watched: one line for each problem, and what to try."""
    by_problem: dict[tuple[str, str, str], list[str]] = {}
    advice: dict[str, str] = {}
    watched = [(run, run.health) for run in runs if run.health is not None]
    if not watched:
        return
    for run, health in watched:
        for moment, diagnosis in zip(("first", "last"), health.diagnoses(), strict=True):
            for finding in diagnosis:
                key = (moment, finding.problem, _some(finding.leaves))
                by_problem.setdefault(key, []).append(_name(run, runs))
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
            table.add_row(moment, problem, leaves, "all" if everybody else ", ".join(titles))
        console.print(table)
        for problem, text in advice.items():
            console.print(f"[yellow]{problem}[/]: {text}", highlight=False)
    console.print()


def _name(run: Run, runs: Sequence[Run]) -> str:
    """The optimizer's name, and the batch size if there are several."""
    sizes = len({run.batch_size for run in runs}) > 1
    return recipe_of(run.optimizer).title + f" {run.batch_size}" * sizes


def _some(leaves: Sequence[str]) -> str:
    """The worst two, and how many more."""
    return ", ".join(leaves[:2]) + (f" and {len(leaves) - 2} more" if len(leaves) > 2 else "")


def _table(settings: Settings, network: str, runs: Sequence[Run]) -> Table:
    """Training first, then test. Of several batch sizes the size, too, in the place of the test loss."""
    sizes = len(settings.batch_sizes) > 1
    heads = ["learning\nrate", "training\nloss", "training\naccuracy", "test\nloss", "test\naccuracy"]
    if sizes:
        heads = ["batch\nsize", *heads[:3], heads[-1]]
    table = table_of_numbers(f"{settings.title(network)}\n{settings.details}", heads)
    table.add_column("verdict", no_wrap=True)
    for run in runs:
        m = run.measures
        table.add_row(
            recipe_of(run.optimizer).title,
            *([f"{run.batch_size}"] if sizes else []),
            f"{run.learning_rate:g}",
            f"{m.train_loss[-1]:.2e}",
            f"{100 * m.train_accuracy[-1]:.1f} %",
            *([] if sizes else [f"{m.test_loss[-1]:.2e}"]),
            f"{100 * m.test_accuracy[-1]:.1f} %",
            f"[{_COLOURS[run.verdict]}]{run.verdict}[/]",
        )
    return table
