"""Numbers of whole trees over eight devices, inside of ``shard_map`` and partitioned by XLA; prints "ok".

python tests/scripts/shards.py
"""

import collections
import functools
import os
import re
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import gradtx as gx

SHAPES = {"rows": (8, 4), "columns": (3, 8), "both": (16, 4), "vector": (3,), "number": ()}
SPECS = {
    (8,): {"rows": P("x"), "columns": P(None, "x"), "both": P("x"), "vector": P(), "number": P()},
    (4, 2): {"rows": P("x"), "columns": P(None, "y"), "both": P("y", "x"), "vector": P(), "number": P()},
}
TX = gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(1.0), gx.monitor())
COLLECTIVE = re.compile(r" = .*(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?\(")


def collectives(compiled) -> dict[str, int]:
    """The collectives of a program, and those of its loops, which only an overflow enters."""
    found, place = collections.Counter(), ""
    for line in compiled.as_text().splitlines():
        if line and line[0] != " ":
            place = "step" if line.startswith("ENTRY") else "loops"
        if COLLECTIVE.search(line):
            found[place] += 1
    return dict(found)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def norms(shape, executor, automatic=True):
    """A clip by the norm of the tree, and a monitor, beside numpy; and how many collectives that takes."""
    mesh = jax.make_mesh(shape, ("x", "y")[: len(shape)], (AxisType.Auto,) * len(shape))
    params, grads, specs = tree(0), tree(1), SPECS[shape]
    grads["both"][3] = 0

    def step(params, grads):
        after, state = gx.step(TX, params, grads, TX.init(params))
        return after, gx.metrics(state)

    inside = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs, specs), out_specs=(specs, P())))
    placed = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    by_jit = jax.jit(step, in_shardings=(placed, placed))
    with gx.executor(executor):
        # One sum before the clip, one of all that the monitor takes behind it; XLA takes one for each axis of the mesh.
        # In loops are sums that are taken again where a norm is out of range, and only there: of arrays in groups by
        # shapes, of which XLA adds up each by itself.
        runs = [(inside, (1, 1e25, 1e-25), 2, 2)] + [(by_jit, (1,), 2 * len(shape), 2 * len(shape) + 2)] * automatic
        for run, factors, most, most_again in runs:
            compiled = run.lower(params, grads).compile()
            counts = collectives(compiled)
            assert counts["step"] == most and counts.get("loops", 0) <= most_again, (shape, executor, counts)
            for factor in factors:
                scaled = {name: (g * factor).astype(np.float32) for name, g in grads.items()}
                given = (params, scaled) if run is inside else jax.device_put((params, scaled), (placed, placed))
                after, seen = compiled(*given)
                wide = {name: g.astype(np.float64) for name, g in scaled.items()}
                norm = np.sqrt(sum(np.sum(g**2) for g in wide.values()))
                for name, p in params.items():
                    np.testing.assert_allclose(after[name], p - wide[name] / max(1, norm), rtol=1e-5, atol=1e-6)
                    np.testing.assert_allclose(seen[f"gradient_norm/{name}"], np.linalg.norm(wide[name]), rtol=1e-5)
                    assert seen[f"zeros/{name}"] == np.mean(wide[name] == 0, dtype=np.float32), name
                np.testing.assert_allclose(seen["gradient_norm"], norm, rtol=1e-5)


def silent():
    """Shards that types do not show: refused, where it is not said that there are none."""
    grads = np.array([3.0, 4.0], np.float32)
    tx = gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(1.0), gx.sgd(1.0)))

    def step(grads, said):
        with said():
            return tx.update(grads, tx.init(grads))[0]

    mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Auto,) * 2)
    for axes in {"x", "y"}, {"x"}:  # the second is left to the compiler, where the kernel cannot run
        over = jax.shard_map(
            functools.partial(step, said=gx.replicated),
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
            check_vma=False,
            axis_names=axes,
        )
        np.testing.assert_allclose(jax.jit(over)(grads), [-0.6, -0.8], rtol=1e-6)
    found = jax.pmap(functools.partial(step, said=gx.replicated))(np.stack([grads] * 8))
    np.testing.assert_allclose(found, [[-0.6, -0.8]] * 8, rtol=1e-6)


def large():
    """A pass that has an order on one device has none where a number of one shard would go to all."""
    tx, x = gx.dialects.optax.optimistic_gradient_descent(0.1), np.ones(2**16, np.float32)
    x = jax.device_put(x, NamedSharding(jax.make_mesh((8,), ("x",), (AxisType.Auto,)), P("x")))
    with gx.executor("reference"):
        step = jax.jit(lambda p, g, s: gx.step(tx, p, g, s))
        assert not collectives(step.lower(x, x, jax.jit(tx.init)(x)).compile())


def main(one):
    assert len(jax.devices()) == 8
    large()
    if one:
        norms((4, 2), "native", automatic=False)
    else:
        for shape in SPECS:
            for executor in ("reference", "native"):
                norms(shape, executor)
        silent()
    print("ok")


if __name__ == "__main__":  # and not where tests are collected, which import this as well
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    main("one" in sys.argv)
