"""A training by several processes, each of which may be killed: ZeRO-1, and a checkpoint every few steps.

    python docs/processes.py --folder RUN                                  # one process
    python docs/processes.py --folder RUN --processes 4 --process 2 --coordinator 10.0.0.1:1234

Each process gets its number; number 0 is the coordinator, at that address. A run that was killed is started again by the
same command, with as many processes as there are then, and goes on from the last checkpoint in the folder, which all of
them see.
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

TX = gx.chain(gx.clip_by_global_norm(1.0), gx.nadamw(optax.cosine_decay_schedule(0.02, 200), weight_decay=0.1))
WIDTH, ROWS = 16, 32


def first_parameters() -> dict[str, jax.Array]:
    """Those before the first step, the same in all processes."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "in": 0.3 * jax.random.normal(keys[0], (8, WIDTH)),
        "bias": jnp.zeros(WIDTH),
        "out": 0.3 * jax.random.normal(keys[1], (WIDTH, 1)),
    }


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"] - y) ** 2)


def batch(step: int, sharding: NamedSharding) -> tuple[jax.Array, jax.Array]:
    """The rows of a step, of which a process makes its own: they follow from the step, not from who makes them."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(ROWS, 8)).astype(np.float32)
    both = x, np.sin(x.sum(1, keepdims=True))
    return tuple(jax.make_array_from_callback(one.shape, sharding, one.__getitem__) for one in both)  # pyright: ignore[reportReturnType] - two


def train(folder: Path, steps: int, every: int) -> dict[str, np.ndarray]:
    """The parameters after so many steps, those that another run has saved in the folder included."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def begin() -> dict[str, Any]:
        params = first_parameters()
        return {"params": params, "state": TX.init(params)}

    abstract = jax.eval_shape(begin)
    # Of the state, each device holds its part (ZeRO-1); the parameters, each device holds whole.
    held = {
        "params": jax.tree.map(lambda p: everywhere, abstract["params"]),
        "state": jax.tree.map(lambda x: _parted(mesh, x), abstract["state"]),
    }

    def step(run: dict[str, Any], x: jax.Array, y: jax.Array) -> dict[str, Any]:
        params, state = gx.step(TX, run["params"], jax.grad(loss)(run["params"], x, y), run["state"])
        return {"params": params, "state": state}

    stepped = jax.jit(step, donate_argnums=0, out_shardings=held)
    with ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)) as saved:
        done = saved.latest_step() or 0
        if done:
            asked = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, held)
            run = saved.restore(done, args=ocp.args.StandardRestore(asked))
        else:
            run = jax.jit(begin, out_shardings=held)()
        print("from", done, flush=True)
        for count in range(done, steps):
            run = stepped(run, *batch(count, rows))
            if (count + 1) % every == 0:
                saved.save(count + 1, args=ocp.args.StandardSave(run))  # goes on while it is written
            print(jax.block_until_ready(count + 1), flush=True)
    return {name: np.asarray(p) for name, p in run["params"].items()}


def _parted(mesh: Any, x: Any) -> NamedSharding:
    spread = x.ndim and x.shape[0] % mesh.size == 0
    return NamedSharding(mesh, PartitionSpec("data") if spread else PartitionSpec())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints; all processes see it")
    parser.add_argument("--processes", type=int, default=1, help="how many there are")
    parser.add_argument("--process", type=int, default=0, help="the number of this one")
    parser.add_argument("--coordinator", default="127.0.0.1:1234", help="address and port of process 0")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--heartbeat", type=int, default=30, help="seconds until a silent process counts as dead")
    options = parser.parse_args()
    # Before anything else of jax. A process that is silent for so long is taken for dead, and all others end too.
    jax.distributed.initialize(
        options.coordinator, options.processes, options.process, heartbeat_timeout_seconds=options.heartbeat
    )
    params = train(options.folder / "saved", options.steps, options.every)
    if options.process == 0:
        np.savez(options.folder / "params.npz", **params)


if __name__ == "__main__":
    main()
