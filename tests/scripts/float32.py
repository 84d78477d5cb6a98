"""How far float32 is from float64: gradtx, optax and torch, each against its own float64, as a table.

    python tests/scripts/float32.py        # writes the table into tests/README.md; with torch, half a minute

A number is the largest relative error of an update, in units of 2⁻²³, over elements from 1e-2 to 1e2. The noisy
gradients are 16 that come again and again, the constant one is the first of them.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx import dialects

ULP = 2.0**-23
RNG = np.random.default_rng(0)
GRADIENTS = (np.logspace(-2, 2, 8) * RNG.choice([-1, 1], 8) * (1 + 0.5 * RNG.normal(size=(16, 8)))).astype("bfloat16")
"""Sixteen gradients of eight elements, in few enough bits for every dtype."""
RUNS = {
    "first step": (1, GRADIENTS),
    "100 steps": (100, GRADIENTS),
    "10⁴ steps": (10_000, GRADIENTS),
    "10⁴ constant": (10_000, np.repeat(GRADIENTS[:1], 16, axis=0)),
}
"""How many steps, and with what gradients."""


def last_updates(
    txs: Mapping[str, Any], dtype: str = "float32", runs: Mapping[str, tuple[int, np.ndarray]] = RUNS
) -> dict[str, dict[str, np.ndarray]]:
    """For each run the last updates of all transformations, which one program computes; as float64."""

    def run(steps: jax.Array, table: jax.Array) -> Any:
        zero = jnp.zeros(8, dtype)

        def one(t: jax.Array, carry: Any) -> Any:
            g = table[t % 16]
            return {name: tx.update(g, carry[name][1], zero) for name, tx in txs.items()}

        start = {name: (zero, tx.init(zero)) for name, tx in txs.items()}
        return {name: updates for name, (updates, _) in jax.lax.fori_loop(0, steps, one, start).items()}

    with jax.enable_x64(dtype == "float64"):
        program = jax.jit(run)
        found = {name: program(steps, jnp.asarray(table, dtype)) for name, (steps, table) in runs.items()}
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def errors(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest relative error, in ulp; below the least normal number one may be 0."""
    off = np.maximum(np.abs(found - truth) - np.finfo(np.float32).tiny, 0)
    return float(np.max(off / np.where(truth == 0, 1, np.abs(truth))) / ULP)


# -- The table --------------------------------------------------------------------------------------------------------

RATE = 0.01


def peers() -> Iterator[tuple[str, Any, Any, Callable[[Any, Any], Any]]]:
    """Optimizers that all three have: gradtx's after torch, optax's, and what makes torch's."""
    ours = dialects.torch
    yield "SGD, momentum 0.9", ours.sgd(RATE, 0.9), optax.sgd(RATE, 0.9), lambda t, p: t.SGD(p, RATE, 0.9)
    yield "Adagrad", ours.adagrad(RATE), optax.adagrad(RATE, 0.0), lambda t, p: t.Adagrad(p, RATE)
    for alpha in (0.99, 0.999, 0.9999, 1 - 1e-6):
        theirs = optax.rmsprop(RATE, alpha)
        yield (
            (f"RMSprop, {alpha:g}" if alpha < 0.99999 else "RMSprop, 1 − 1e-6"),
            ours.rmsprop(RATE, alpha),
            theirs,
            (lambda t, p, alpha=alpha: t.RMSprop(p, RATE, alpha)),
        )
    yield "Adam", ours.adam(RATE), optax.adam(RATE), lambda t, p: t.Adam(p, RATE)
    slow = (0.999, 1 - 1e-6)
    yield "Adam, 0.999 and 1 − 1e-6", ours.adam(RATE, slow), optax.adam(RATE, *slow), lambda t, p: t.Adam(p, RATE, slow)
    yield "AMSGrad", ours.adam(RATE, amsgrad=True), optax.amsgrad(RATE), lambda t, p: t.Adam(p, RATE, amsgrad=True)
    yield "Nadam", ours.nadam(RATE), optax.nadam(RATE), lambda t, p: t.NAdam(p, RATE)


def torchs_updates(make: Callable[[Any, Any], Any], dtype: str) -> dict[str, np.ndarray]:
    """For each run torch's last update: what a step adds to parameters of zero."""
    import torch

    found = {}
    for name, (steps, table) in RUNS.items():
        p = torch.zeros(8, dtype=getattr(torch, dtype), requires_grad=True)
        gradients = [torch.tensor(row.astype(dtype)) for row in table]
        optimizer = make(torch.optim, [p])
        for g in itertools.islice(itertools.cycle(gradients), steps):
            with torch.no_grad():
                p.zero_()
            p.grad = g.clone()
            optimizer.step()
        found[name] = p.detach().numpy().astype(np.float64)
    return found


def measured() -> dict[str, dict[str, tuple[float, float, float]]]:
    """For each optimizer and run the errors of gradtx, optax and torch."""
    rows = list(peers())
    both: list[dict[str, Any]] = [{row[0]: row[which] for row in rows} for which in (1, 2)]
    single, double = ([last_updates(txs, dtype) for txs in both] for dtype in ("float32", "float64"))
    table = {}
    for name, _, _, make in rows:
        theirs = [torchs_updates(make, dtype) for dtype in ("float32", "float64")]
        table[name] = {
            run: (
                *(errors(few[run][name], many[run][name]) for few, many in zip(single, double, strict=True)),
                errors(theirs[0][run], theirs[1][run]),
            )
            for run in RUNS
        }
    return table


def markdown(table: Mapping[str, Mapping[str, tuple[float, ...]]]) -> str:
    """Errors of gradtx / optax / torch in ulp."""
    lines = ["| in ulp: gradtx / optax / torch | " + " | ".join(RUNS) + " |", "|---" * (len(RUNS) + 1) + "|"]

    def number(error: float) -> str:
        return f"{error:.2g}" if error < 99.5 else f"{error:.0f}"

    for name, runs in table.items():
        cells = [" / ".join(map(number, each)) for each in runs.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Writes the table between its marks."""
    path = Path(__file__).parents[1] / "README.md"
    marks = r"(<!-- float32 -->\n).*?(<!-- end -->)"
    text, times = re.subn(marks, lambda m: f"{m[1]}{markdown(measured())}\n{m[2]}", path.read_text(), flags=re.DOTALL)
    if times != 1:
        sys.exit(f"{path}: there is no place for the table")
    path.write_text(text)


if __name__ == "__main__":
    main()
