"""The cost of a sweep, by processor time: ``python docs/time_sweep.py`` prints the table of ``docs/sweep.md``."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradtx as gx
from gradtx.workbench.data import load_digits
from gradtx.workbench.networks import ACTIVATIONS, Network
from gradtx.workbench.training import cross_entropy

STEPS, BATCH = 1000, 32
DATA = load_digits()
IMAGES, LABELS = jnp.asarray(DATA.train_images), jnp.asarray(DATA.train_labels)


def train(init: Callable[[Any], Any], loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A training of 1,000 steps with these initial parameters, and this loss of parameters and step."""

    def run(tx: Any, key: Any) -> Any:
        def one(carry: Any, i: Any) -> Any:
            params, state = carry
            return gx.step(tx, params, jax.grad(loss)(params, i), state), None

        params = init(key)
        (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), jnp.arange(STEPS))
        return loss(params, 0)

    return run


def valley(params: Any, i: Any) -> Any:
    """A loss that is nearly no work."""
    return jnp.sum(jnp.log(jnp.cosh(params)))


def digits(network: Network) -> Callable[[Any, Any], Any]:
    """The training of a network on digits, in batches one after another."""

    def loss(params: Any, i: Any) -> Any:
        rows = (i * BATCH + jnp.arange(BATCH)) % len(LABELS)
        return cross_entropy(network.apply(params, IMAGES[rows]), LABELS[rows])

    return train(network.init, loss)


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - began


def compiled_anew(run: Callable[[Any, Any], Any], rate: float) -> Any:
    """A run whose learning rate is built in."""
    return jax.jit(run, static_argnums=0)(gx.adam(rate), jax.random.key(0))


def note(reports: list[float], table: gx.SweepTable, rows: int) -> None:
    """A progress report that only looks at the clock."""
    reports.append(time.process_time())


def main() -> None:
    """Print a line for each training: the usual way by three runs, and sweeps."""
    few, many = np.geomspace(1e-4, 1e-2, 4), np.geomspace(1e-4, 1e-2, 20)
    trainings = {
        "two parameters": (train(lambda key: jax.random.normal(key, (2,)), valley), many, 5),
        "one hidden layer of 32": (digits(Network(ACTIVATIONS["relu"], 1, 32, 64, 10)), many, 5),
        "three of 64": (digits(Network(ACTIVATIONS["relu"], 3, 64, 64, 10)), many, 5),
        "two of 512": (digits(Network(ACTIVATIONS["relu"], 2, 512, 64, 10)), few, 2),
    }
    for name, (run, rates, number) in trainings.items():
        anew = np.mean([seconds(lambda run=run, rate=rate: compiled_anew(run, rate)) for rate in (0.5, 0.3, 0.1)])
        rows = len(rates) * number
        print(f"{name}, {rows} runs: {rows * anew:.0f} s if each is compiled, as {anew:.2f} s are needed for one")
        for chunk in (1, 8, rows):
            reports = [time.process_time()]
            gx.sweep(run, gx.adam(1.0), {"learning_rate": rates}, number, chunk=chunk, progress=partial(note, reports))
            first, others = reports[1] - reports[0], reports[-1] - reports[1]
            print(f"    chunk={chunk}: {first + others:.1f} s; first chunk after {first:.1f} s")


if __name__ == "__main__":
    main()
