"""The estimate of four placements beside what XLA compiles for eight devices; prints a table, and "ok".

    python tests/scripts/placements.py [scanned]

scanned: for leaves that are stacked over layers, which a scan goes over.
"""

import functools
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx as gx

N, WIDTH, LAYERS = 8, 384, 8
TX = gx.adamw(1e-3)
COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPES = {
    False: {"in": (WIDTH, 2 * WIDTH), "bias": (2 * WIDTH,), "out": (2 * WIDTH, WIDTH), "last": (3,)},
    True: {"w": (LAYERS, WIDTH, WIDTH)},
}


def forward(params, x, whole=lambda w: w):
    """A network, whose weights are made whole where they are used."""
    if "w" in params:
        return jax.lax.scan(jax.checkpoint(lambda x, w: (jnp.tanh(x @ whole(w)), None)), x, params["w"])[0]
    hidden = jnp.tanh(x @ whole(params["in"]) + whole(params["bias"]))
    return hidden @ whole(params["out"]) + params["last"].sum()


def programs(scanned):
    """A training step for each placement, and its arguments."""
    mesh = jax.make_mesh((N,), ("data",), (AxisType.Auto,))
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES[scanned].items()}
    state = jax.eval_shape(TX.init, params)
    dim = int(scanned)
    rows = jax.ShapeDtypeStruct((N, WIDTH), jnp.float32)

    def parts(tree):
        def one(x):
            return P(*[None] * dim, "data") if x.ndim > dim and x.shape[dim] % N == 0 else P()

        return jax.tree.map(one, tree)

    def everywhere(tree):
        return jax.tree.map(lambda x: P(), tree)

    def placed(specs):
        return jax.tree.map(functools.partial(NamedSharding, mesh), specs, is_leaf=lambda x: isinstance(x, P))

    def loss(params, x, y, whole=lambda w: w):
        return jnp.mean((forward(params, x, whole) - y) ** 2)

    def automatic(params, state, x, y):
        return gx.step(TX, params, jax.grad(loss)(params, x, y), state)

    def scatter(g):
        g = g / N
        return (
            jax.lax.psum_scatter(g, "data", scatter_dimension=dim, tiled=True)
            if parts(g) != P()
            else jax.lax.psum(g, "data")
        )

    def own(p):
        size = p.shape[dim] // N
        at = jax.lax.axis_index("data") * size
        return jax.lax.dynamic_slice_in_dim(p, at, size, dim) if parts(p) != P() else p

    def zero1(params, state, x, y):
        grads = jax.tree.map(scatter, jax.grad(loss)(params, x, y))
        after, state = gx.step(TX, jax.tree.map(own, params), grads, state)
        whole = jax.tree.map(lambda p, spec: p if spec == P() else gather(p, dim), after, parts(params))
        return whole, state

    def gather(p, dim=0):
        return jax.lax.all_gather(p, "data", axis=dim, tiled=True)

    def sharded(params, state, x, y):
        grads = jax.grad(lambda params: loss(params, x, y, gather) / N)(params)
        last = {"last": jax.lax.psum(grads["last"], "data")} if "last" in grads else {}
        return gx.step(TX, params, grads | last, state)

    def under_jit(p, s):
        given = placed((p, s, P("data"), P("data")))
        return jax.jit(automatic, in_shardings=given, out_shardings=given[:2], donate_argnums=(0, 1))

    def under_shard_map(step, p):  # elementwise: types need not say what is a shard
        specs = {"in_specs": (p, parts(state), P("data"), P("data")), "out_specs": (p, parts(state))}
        return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs), donate_argnums=(0, 1))

    return {
        "replicated": under_jit(everywhere(params), everywhere(state)),
        "ZeRO-1, out_shardings": under_jit(everywhere(params), parts(state)),
        "ZeRO-1, reduce-scatter": under_shard_map(zero1, everywhere(params)),
        "fully sharded": under_shard_map(sharded, parts(params)),
    }, (params, state, rows, rows)


def sent(text, scanned):
    """The bytes that a device sends in rings, by the HLO; a computation that is not the step is a turn of the scan."""
    total, turns = 0, 1
    for line in text.splitlines():
        if line and line[0] != " ":
            turns = LAYERS if scanned and not line.startswith("ENTRY") else 1
        if found := COLLECTIVE.search(line):
            arrays = re.findall(r"f32\[([\d,]*)\]", found[1])
            nbytes = turns * 4 * sum(elements(dims) for dims in arrays)
            total += {"all-reduce": 2 * (N - 1) / N, "all-gather": (N - 1) / N, "reduce-scatter": N - 1}[
                found[2]
            ] * nbytes
    return total


def elements(dims):
    return int(np.prod([int(n) for n in dims.split(",") if n]))


def main(scanned):
    assert len(jax.devices()) == N
    compiled, arguments = programs(scanned)
    found = gx.estimate(TX, arguments[0], {"data": N}, scanned=LAYERS if scanned else 1)
    batch = 2 * 4 * WIDTH
    for name, program in compiled.items():
        done = program.lower(*arguments).compile()
        of: Any = done.memory_analysis()
        row = found.placements[name]
        held = of.argument_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes - batch
        peak, network = held + of.temp_size_in_bytes, sent(done.as_text(), scanned)
        print(
            f"{name}: held {held / (row.parameters + row.state):.3f} of the estimate, "
            f"peak {peak / row.memory:.3f}, network {network / row.network:.3f}"
        )
        np.testing.assert_allclose(held, row.parameters + row.state, rtol=0.01)
        np.testing.assert_allclose(network, row.network, rtol=0.01)
        assert 0.94 < peak / row.memory < 1.01
    print("ok")


if __name__ == "__main__":  # and not where tests are collected, which import this as well
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    main("scanned" in sys.argv)
