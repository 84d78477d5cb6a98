"""Two trainings with slots in each format: the digits, and a small character model of a text in the public domain.

    python tests/scripts/formats.py [format ...]

prints for each format the final losses of five seeds, their difference to those of float32, and the longest step of one
element in learning rates, as the table of ``docs/guide/low_precision.md`` has them.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gradtx as gx
from gradtx.workbench.data import load_digits

FORMATS = ("float32", "bfloat16", "bfloat16_stochastic", "root8", "dynamic8")
SEEDS = 5
TEXT = Path(__file__).parents[1] / "fixtures" / "declaration.txt"  # of Independence, 1776
CONTEXT, WIDTH = 16, 32


class Task(NamedTuple):
    """A training: the initial parameters, the loss of a batch, what batches are taken of, steps and learning rate."""

    init: Callable[..., Any]
    loss: Callable[..., Any]
    data: tuple[jax.Array, jax.Array]
    steps: int
    rate: float


def layers(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"w": jax.random.normal(k, (n, m)) * (2 / n) ** 0.5, "b": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def logits(network, x):
    for layer in network[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ network[-1]["w"] + network[-1]["b"]


def entropy(scores, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], 1).mean()


def digits():
    data = load_digits()
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    init = functools.partial(layers, sizes=(64, 256, 256, 10))
    return Task(init, lambda p, x, y: entropy(logits(p, x), y), (images, labels), 600, 1e-3)


def text():
    """The next character, of the sixteen before it."""
    letters, codes = np.unique(list(TEXT.read_text()), return_inverse=True)
    windows = jnp.asarray(np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1))

    def init(key):
        of_letters, rest = jax.random.split(key)
        table = 0.3 * jax.random.normal(of_letters, (128, WIDTH))
        return {"letters": table, "network": layers(rest, (CONTEXT * WIDTH, 256, len(letters)))}

    def loss(p, x, y):
        return entropy(logits(p["network"], p["letters"][x].reshape(len(x), -1)), y)

    return Task(init, loss, (windows[:, :-1], windows[:, -1]), 300, 3e-3)


@functools.partial(jax.jit, static_argnames=("task", "storage"))
def trained(seed, task, storage):
    """The loss over all the data after a training, and the longest step of an element in learning rates."""
    made = TASKS[task]()
    tx = gx.chain(gx.adam(made.rate), state_dtype=storage)
    params = made.init(jax.random.key(seed))

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (64,), 0, len(made.data[0]))
        grads = jax.grad(made.loss)(params, *(x[batch] for x in made.data))
        after, state = gx.step(tx, params, grads, state)
        moved = jax.tree.map(lambda p, q: abs(p - q).max(), params, after)
        return (after, state), jnp.stack(jax.tree.leaves(moved)).max() / made.rate

    keys = jax.random.split(jax.random.key(1000 + seed), made.steps)
    (params, _), longest = jax.lax.scan(step, (params, tx.init(params)), keys)
    return made.loss(params, *made.data), longest.max()


TASKS = {"digits": digits, "text": text}


def results(task, storage):
    """The final losses by seed, and the longest step."""
    losses, steps = zip(*(trained(seed, task, storage) for seed in range(SEEDS)), strict=True)
    return np.asarray(losses, float), float(max(steps))


def main(formats):
    for task in TASKS:
        wide, _ = results(task, "float32")
        for storage in formats or FORMATS:
            losses, longest = results(task, storage)
            apart = losses - wide
            print(
                f"| {task} | {storage} | {losses.mean():.4f} ± {losses.std():.4f} "
                f"| {apart.mean():+.4f} ± {apart.std() / SEEDS**0.5:.4f} | {longest:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
