"""Sweeps as text: for each optimizer the best learning rate, what it reaches, and the range that trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from gradtx.workbench.networks import ACTIVATIONS
from gradtx.workbench.recipes import recipe_of
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweeps.sweep import RATES, Sweep
from gradtx.workbench.table import table_of_numbers
from gradtx.workbench.verdict import TRAINED

__all__ = ["print_sweeps"]


def print_sweeps(settings: Settings, sweeps: Sequence[Sweep], console: Console) -> None:
    """A table for each network, and what its columns mean."""
    for network in settings.networks:
        of_network = [sweep for sweep in sweeps if sweep.network == network]
        if of_network:
            console.print(_table(settings, network, of_network))
            console.print()
    seeds = f"{settings.seeds} seed{'s' * (settings.seeds > 1)}"
    console.print(
        f"best rate: the one with the lowest training loss at the end (mean of {seeds} ± standard deviation). trains"
        f" from/to: lowest and highest learning rate that reached {100 * TRAINED:g} % training accuracy with every"
        " seed, as did all between. × = to / from; larger is easier to tune (≥: the range may go on beyond what was"
        " tried).",
        highlight=False,
    )
    for sweep in sweeps:
        if len(sweep.rates) < len(RATES):
            name = f"{recipe_of(sweep.optimizer).title} on {ACTIVATIONS[sweep.network].title}"
            tried = f"{len(sweep.rates)} of {len(RATES)} learning rates, up to {sweep.rates[-1]:.2g}"
            console.print(f"not finished: {name}, {tried}", highlight=False)


def _table(settings: Settings, network: str, sweeps: Sequence[Sweep]) -> Table:
    title = f"{settings.title(network)}\n{settings.details}"
    heads = ["best\nrate", "training\nloss", "test\naccuracy", "trains\nfrom", "\nto", "\n×"]
    table = table_of_numbers(title, heads)
    for sweep in sweeps:
        losses, accuracies = sweep.losses[sweep.best], 100 * sweep.by_rate("test_accuracy")[sweep.best]
        loss = f"{losses.mean():.1e} ± {_deviation(losses):.0e}"
        accuracy = f"{accuracies.mean():.1f} ± {_deviation(accuracies):.1f} %"
        table.add_row(
            recipe_of(sweep.optimizer).title, f"{sweep.rates[sweep.best]:.2g}", loss, accuracy, *_range(sweep)
        )
    return table


def _deviation(values: np.ndarray) -> float:
    """The standard deviation over seeds; of values that are not all finite, NaN, and no warning."""
    return float(np.std(values)) if np.isfinite(values).all() else np.nan


def _range(sweep: Sweep) -> tuple[str, str, str]:
    trains = sweep.range
    if trains is None:
        return "none", "", ""
    return f"{trains.lowest:.2g}", f"{trains.highest:.2g}", f"{'≥ ' * trains.open}{trains.factor:.0f}"
