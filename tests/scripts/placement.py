"""States, and steps, over eight devices: each claim a function, which prints its name once it has been seen.

    python tests/scripts/placement.py [claim ...]

all claims without.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradtx as gx

SHAPES = {"rows": (64, 24), "columns": (12, 16), "both": (16, 8), "odd": (7, 3), "scalar": ()}
SPECS = {"rows": P("x"), "columns": P(None, "y"), "both": P("x", "y"), "odd": P(), "scalar": P()}
ADAM = gx.adam(0.1)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def arrays(seed):
    draw = np.random.default_rng(seed).normal
    return {name: jnp.asarray(draw(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def shardings(on):
    return {name: NamedSharding(on, spec) for name, spec in SPECS.items()}


def spread(tree, on):
    return jax.device_put(tree, shardings(on))


def state_by_jit_is_where_the_parameters_are():
    """What depends on no parameter, as zeros of optax and a state of scalars alone, would be on one device."""
    params = spread(arrays(0), mesh())
    slow = gx.chain(gx.in_units_of_distance(ADAM, initial=0.1))
    for tx in gx.sgd(0.1), gx.adafactor(0.1), gx.chain(optax.adam(0.1)), gx.skip_nonfinite(optax.adam(0.1)), slow:
        for keys, x in jax.tree.leaves_with_path(jax.jit(tx.init)(params)):
            name = getattr(keys[-1], "key", None)
            like = SPECS[name] if name in SHAPES and x.shape == SHAPES[name] else P()
            wanted = NamedSharding(mesh(), like)
            assert x.sharding.is_equivalent_to(wanted, x.ndim), (tx, jax.tree_util.keystr(keys), x.sharding)


def what_multiplies_matrices_runs_on_explicit_axes():
    """Under ``set_mesh`` and without: the numbers of one device, and the types of before."""
    for tx in gx.muon(0.1, otherwise=ADAM), gx.shampoo(0.1):
        step = jax.jit(lambda p, s, tx=tx: gx.step(tx, p, p, s))
        whole = step(arrays(0), tx.init(arrays(0)))[0]
        params = spread(arrays(0), mesh(AxisType.Explicit))
        state = tx.init(params)
        types = jax.tree.map(jax.typeof, (params, state))
        found = step(params, state)
        assert jax.tree.map(jax.typeof, found) == types, tx
        with jax.set_mesh(mesh(AxisType.Explicit)):
            assert [x.sharding.spec for x in jax.make_jaxpr(step)(params, state).out_avals] == [
                x.sharding.spec for x in jax.tree.leaves(types)
            ]
        for name in SHAPES:
            np.testing.assert_allclose(found[0][name], whole[name], rtol=1e-4, atol=1e-5)


def packed_refuses_what_is_spread():
    params = spread(arrays(0), mesh())
    try:
        gx.packed(ADAM).init(params)
    except ValueError as error:
        assert "'both' of 128 elements" in str(error) and "below=128" in str(error), error
    else:
        raise AssertionError("packed takes leaves that are spread")
    assert gx.packed(ADAM, below=128).init(params).slots["rms"]["s"].packing.groups == ((2, 4),)


CLAIMS = [
    state_by_jit_is_where_the_parameters_are,
    what_multiplies_matrices_runs_on_explicit_axes,
    packed_refuses_what_is_spread,
]


def main(names):
    assert jax.device_count() == 8
    for claim in CLAIMS:
        if not names or claim.__name__ in names:
            claim()
            print(claim.__name__, flush=True)


if __name__ == "__main__":  # and not where tests are collected, which import this as well
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    main(sys.argv[1:])
