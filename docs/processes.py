"""A training by several processes, each of which may be killed.

    python docs/processes.py --folder RUN            # one process, or for each of four:
    python docs/processes.py --folder RUN --processes 4 --process 2 --coordinator HOST:PORT

Process 0 is the coordinator, and its address the same for all. After a death the same
command goes on from the last checkpoint, with as many processes as there are then.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradtx as gx

RATE = optax.cosine_decay_schedule(0.02, 200)
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.nadamw(RATE, weight_decay=0.1))
ROWS, INPUTS, WIDTH = 32, 8, 16


def first_parameters() -> dict[str, jax.Array]:
    """The parameters before the first step, the same in all processes."""
    one, two = jax.random.split(jax.random.key(0))
    return {
        "in": 0.3 * jax.random.normal(one, (INPUTS, WIDTH)),
        "bias": jnp.zeros((1, WIDTH)),
        "out": 0.3 * jax.random.normal(two, (WIDTH, 1)),
    }


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean square error of a small network."""
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def batch(step: int, rows: NamedSharding) -> list[jax.Array]:
    """The batch of a step, of which each process keeps its rows, whatever their number."""
    x = np.random.default_rng(step).normal(size=(ROWS, INPUTS)).astype(np.float32)
    y = np.sin(x.sum(1, keepdims=True))
    return [jax.make_array_from_callback(a.shape, rows, a.__getitem__) for a in (x, y)]


def train(folder: Path, steps: int, every: int) -> dict[str, Any]:
    """The parameters after so many steps; those that the folder has are not taken again."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def begin() -> dict[str, Any]:
        params = first_parameters()
        return {"params": params, "state": TX.init(params)}

    def step(run: dict[str, Any], x: jax.Array, y: jax.Array) -> dict[str, Any]:
        grads = jax.grad(loss)(run["params"], x, y)
        params, state = gx.step(TX, run["params"], grads, run["state"])
        return {"params": params, "state": state}

    types = jax.eval_shape(begin)
    # ZeRO-1: of the state, each device has a part; of the parameters, each has all.
    shardings = {
        "params": jax.tree.map(lambda p: whole, types["params"]),
        "state": gx.state_shardings(TX, types["params"], whole, axis="data"),
    }
    stepped = jax.jit(step, donate_argnums=0, out_shardings=shardings)

    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute(), options=options) as saved:
        done = saved.latest_step() or 0
        if done:  # in the places of this mesh, whatever that was which saved it
            asked = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                types,
                shardings,
            )
            run = saved.restore(done, args=ocp.args.StandardRestore(asked))
        else:
            run = jax.jit(begin, out_shardings=shardings)()
        print("from", done, flush=True)
        for i in range(done, steps):
            run = stepped(run, *batch(i, rows))
            if (i + 1) % every == 0:  # written while the training goes on
                saved.save(i + 1, args=ocp.args.StandardSave(run))
            print(i + 1, flush=True)
    return {name: np.asarray(p) for name, p in run["params"].items()}


def main() -> None:
    """One process of a run."""
    parser = argparse.ArgumentParser(description="One process of a training.")
    parser.add_argument("--folder", type=Path, required=True, help="which all see")
    parser.add_argument("--processes", type=int, default=1, help="how many there are")
    parser.add_argument("--process", type=int, default=0, help="which one this is")
    parser.add_argument("--coordinator", default="127.0.0.1:1234")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps to a checkpoint")
    parser.add_argument("--heartbeat", type=int, default=30, help="seconds")
    options = parser.parse_args()
    # Before anything else of jax. Who is silent for longer is dead, and all others end.
    jax.distributed.initialize(
        options.coordinator,
        options.processes,
        options.process,
        heartbeat_timeout_seconds=options.heartbeat,
    )
    params = train(options.folder / "saved", options.steps, options.every)
    if options.process == 0:
        np.savez(options.folder / "params.npz", **params)


if __name__ == "__main__":
    main()
