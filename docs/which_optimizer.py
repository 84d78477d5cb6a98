"""Every optimizer with many learning rates, for the table of ``docs/guide/which.md``.

    python docs/which_optimizer.py             # all rows, in three minutes on a quiet core
    python docs/which_optimizer.py lion muon   # these, among the rows that are there

The network, the images and the recipes are those of ``gradtx compare``; each row is one ``gradtx.sweep`` for each
network.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx as gx
from gradtx import optimizers
from gradtx.workbench.data import load_digits
from gradtx.workbench.networks import ACTIVATIONS, Network
from gradtx.workbench.recipes import ALIASES, FACTOR, RECIPES
from gradtx.workbench.sweeps.sweep import with_factor
from gradtx.workbench.training import begin, measure, run_epoch

PAGE = Path(__file__).parent / "guide" / "which.md"
EPOCHS, BATCH, SEEDS, RATES = 10, 32, 3, np.geomspace(1e-5, 10, 13)
TRAINED = 0.95  # training accuracy, as in the verdicts of ``gradtx compare``
NETWORKS = {"ReLU": ("relu", 3), "sigmoid": ("sigmoid", 3)}
LEFT_OUT = {  # and why
    "article_adam": "nearly adam",
    "article_max_v": "nearly amsgrad",
    "shampoo": "a step takes a hundred times as long as the others'",
    "momo": "it takes the loss",
    "momo_adam": "it takes the loss",
}
DATA = jax.device_put(load_digits())


def trained(network: Network, tx: Any, key: jax.Array) -> dict[str, Any]:
    """Losses and accuracies at the end, at the parameters that the optimizer says are to be evaluated."""
    params, state, shuffle = begin(network, tx, key)

    def one(carry: Any, epoch: jax.Array) -> Any:
        params, state, *_ = run_epoch(network, tx, BATCH, *carry, DATA, jax.random.fold_in(shuffle, epoch))
        return (params, state), None

    (params, state), _ = jax.lax.scan(one, (params, state), jnp.arange(1, EPOCHS + 1))
    measured = measure(network, gx.evaluation_point(state, params), DATA)
    return {"loss": measured.train_loss, "train": measured.train_accuracy, "test": measured.test_accuracy}


def row(name: str) -> str:
    """A row of the table."""
    cells, recipe = [f"`{name}`"], RECIPES[ALIASES.get(name, name)]
    tx = recipe.make(recipe.learning_rate, EPOCHS * (DATA.size // BATCH))
    points = [recipe.point(rate) for rate in RATES]
    for activation, depth in NETWORKS.values():
        network = Network(ACTIVATIONS[activation], depth, width=64, inputs=64, classes=10)
        table = gx.sweep(
            lambda tx, key, network=network: trained(network, tx, key),
            with_factor(tx) if FACTOR in points[0] else tx,
            points,
            SEEDS,
            chunk=1,
        )
        loss, train, test = (np.asarray(table[result]).reshape(len(RATES), -1) for result in ("loss", "train", "test"))
        loss = np.where(np.isfinite(loss), loss, np.inf).mean(1)
        best = int(np.argmin(loss))
        trains = (train >= TRAINED).all(1) & np.isfinite(loss)
        low = high = best
        while trains[best] and low > 0 and trains[low - 1]:
            low -= 1
        while trains[best] and high < len(RATES) - 1 and trains[high + 1]:
            high += 1
        wide = f"{RATES[high] / RATES[low]:,.0f}" if trains[best] else "none"
        cells += [f"{RATES[best]:.2g}", f"{loss[best]:.0e}", f"{100 * test[best].mean():.1f} %", wide]
    return "| " + " | ".join(cells) + " |"


def width(line: str) -> float:
    """How wide the range of rates is for the first network: what rows are sorted by."""
    return float(line.split("|")[5].replace(",", "").replace("none", "0"))


def main() -> None:
    """Run those that are asked for, and write their rows into the page."""
    names = sys.argv[1:] or [name for name in optimizers.__all__ if name not in LEFT_OUT]
    before, _, rest = PAGE.read_text().partition("<!-- sweep -->\n")
    table, _, after = rest.partition("<!-- end -->")
    head, rule, *lines = table.splitlines()
    rows = {line.split("`")[1]: line for line in lines}
    for name in names:
        started = time.perf_counter()
        rows[name] = row(name)
        print(rows[name], f"{time.perf_counter() - started:.0f} s", flush=True)
    lines = [head, rule, *sorted(rows.values(), key=width, reverse=True)]
    PAGE.write_text(f"{before}<!-- sweep -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
