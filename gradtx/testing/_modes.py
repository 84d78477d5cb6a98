"""The contract in jax's modes: over the devices of a mesh, and under its stricter settings."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

import gradtx as gx
from gradtx._rule import Transformation
from gradtx.testing._compare import close
from gradtx.testing._examples import normal

STEPS = 3
SHAPES = {"rows": (4, 3), "columns": (5, 4), "both": (8, 4), "vector": (2,), "number": ()}
SPECS = {
    "rows": PartitionSpec("x"),
    "columns": PartitionSpec(None, "y"),
    "both": PartitionSpec("x", "y"),
    "vector": PartitionSpec(),
    "number": PartitionSpec(),
}


def mesh(kind: AxisType) -> Mesh:
    """Two axes over four devices, or over as many as there are."""
    devices = jax.devices()
    shape = (2, 2) if len(devices) >= 4 else (min(len(devices), 2), 1)
    return jax.make_mesh(shape, ("x", "y"), (kind, kind), devices=devices[: shape[0] * shape[1]])


def arrays(seed: int, *axes: int) -> dict[str, jax.Array]:
    """A tree of arrays for these specifications, with more axes in front."""
    return {name: normal(*axes, *shape, seed=seed) for name, shape in SHAPES.items()}


def specs(state: Any) -> Any:
    """How the state of these parameters is spread: slots like a parameter as that, all else on all devices."""
    by_shape = {shape: SPECS[name] for name, shape in SHAPES.items()}
    return jax.tree.map(lambda x: by_shape.get(x.shape, PartitionSpec()), state)


def steps(tx: Transformation, params: Any, state: Any, grads: Any) -> Any:
    """Parameters and state after a step for each of the gradients, under scan, which holds both to their types."""

    def one(carry: Any, grads: Any) -> Any:
        params, state = carry
        return gx.step(tx, params, grads, state), None

    return jax.lax.scan(one, (params, state), grads)[0]


def works_in_shard_map(tx: Transformation) -> None:
    """on shards the numbers and types of whole arrays, sharded and replicated ones mixed; on one device, types only"""
    params, grads = arrays(0), arrays(1, STEPS)
    over = functools.partial(jax.shard_map, mesh=mesh(AxisType.Auto))
    spread = {name: PartitionSpec(None, *spec) for name, spec in SPECS.items()}
    state = tx.init(params)
    held = specs(state)
    inside = over(lambda p, g: steps(tx, p, tx.init(p), g)[0], in_specs=(SPECS, spread), out_specs=SPECS)
    outside = over(functools.partial(steps, tx), in_specs=(SPECS, held, spread), out_specs=(SPECS, held))

    def run(params: Any, state: Any, grads: Any) -> Any:
        return steps(tx, params, state, grads), outside(params, state, grads), inside(params, grads)

    for executor in ("reference", "native"):
        with gx.executor(executor):
            if len(jax.devices()) == 1:
                jax.eval_shape(run, params, state, grads)
                continue
            whole, from_outside, from_inside = jax.jit(run)(params, state, grads)
            close(from_outside, whole, "on shards, with a state that was made outside", rtol=1e-5, atol=1e-6)
            close(from_inside, whole[0], "on shards, with a state that was made there", rtol=1e-5, atol=1e-6)
