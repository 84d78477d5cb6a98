"""The catalog over several devices and in jax's modes; on one device, ``test_contract.py`` asks the same of all."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalog import ALL
from jax.sharding import AbstractMesh, AxisType, PartitionSpec as P

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODES = Path(__file__).parents[1] / "scripts" / "modes.py"
PACKED = {"packed": gx.packed(gx.adam(0.1))}
MIXED = ["monitor(2)", "accumulate"]  # norms, sums, conditions and a guard; the others are exhaustive


def on_four_devices(names):
    command = [sys.executable, "-W", "error", str(MODES), *names]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.count("\n") >= len(names), done.stdout


@pytest.mark.exhaustive  # .ci/run runs it
def test_on_four_devices():
    on_four_devices(MIXED)


@pytest.mark.exhaustive
def test_everything_on_four_devices():
    on_four_devices([])


@pytest.mark.parametrize("how", ["one", pytest.param("", marks=pytest.mark.exhaustive)])  # .ci/run runs both
def test_on_eight_devices(how):
    """Norms of trees of sharded and replicated leaves on meshes of one and two axes beside numpy; collectives."""
    command = [sys.executable, "-W", "error", str(MODES.parent / "shards.py"), *how.split()]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr[-3000:]


ELEMENTWISE = ("nadamw", "accumulate", "packed", "partition")
NEEDS_WHOLE = {
    "clip_by_global_norm": "clip_by_global_norm",
    "lamb": "scale_by_trust_ratio",
    "cautious": "cautious",
    "dog": "scale_by_distance",
    "prodigy": "in_units_of_distance",
    "muon": "(orthogonalize|scale_by_shape)",  # whichever is traced first: what was traced before is not again
    "swats": "swats",
    "skip_nonfinite": "skip_nonfinite",
    "loss_scale": "loss_scale",
}


def test_where_types_do_not_say_what_is_a_shard():
    """Elementwise chains go on; what needs whole leaves is refused by name, unless it is said that there are none."""
    mesh = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    params, specs = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}, {"w": P("x"), "b": P()}

    def step(tx, params, grads, state=None):
        return gx.step(tx, params, grads, tx.init(params) if state is None else state)[0]

    def over(run, **kwargs):
        whole = jax.shard_map(run, mesh=mesh, in_specs=(specs, specs), out_specs=specs, **kwargs)
        return jax.eval_shape(whole, params, params)

    watched = {"observer": gx.chain(gx.adam(0.1), gx.monitor())}
    for name in ELEMENTWISE:
        over(functools.partial(step, (ALL | PACKED)[name]), check_vma=False)
    for name, rule in (NEEDS_WHOLE | {"observer": "monitor"}).items():
        tx = (ALL | watched)[name]
        with pytest.raises(ValueError, match=f"{rule}'?: .*needs whole leaves.* over 'x' .*gradtx.replicated"):
            over(functools.partial(step, tx), check_vma=False)

    def said(params, grads):
        with gx.replicated():
            return step(gx.skip_nonfinite(watched["observer"]), params, step(gx.muon(0.1), params, grads))

    over(said, check_vma=False)
    with pytest.raises(ValueError, match=r"^ascent_point: needs whole leaves"):
        over(gx.ascent_point, check_vma=False)
    # A state that was made outside
    tx = gx.chain(gx.clip_by_global_norm(1.0), gx.monitor())
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"rule 'clip_by_global_norm'"):
        over(lambda params, grads: step(tx, params, grads, state), check_vma=False)


def test_abstract_parameters():
    """The state that concrete ones give; what depends on their values stays abstract."""
    params = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.ones(2)}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for name in ("adam", "monitor", "nag_lookahead", "accumulate", "loss_scale", "switch", "swats", "partition"):
        chex.assert_trees_all_equal(ALL[name].init(abstract), ALL[name].init(params))

    class anchored(gx.Rule):
        def slots(self, param):
            return {"anchor": param, "m": jnp.zeros_like(param)}

        def apply(self, signal, slots, param, c):
            return signal, {"anchor": slots.anchor, "m": slots.m}

    slots = anchored().init(abstract).slots["anchored"]
    assert slots["anchor"] == abstract
    chex.assert_trees_all_equal(slots["m"], jax.tree.map(jnp.zeros_like, params))


def test_an_infinite_limit_is_no_infinity_to_refuse():
    params = {"w": jnp.ones((2, 2)), "b": jnp.array([0.5, -0.5])}
    with jax.debug_infs(True):
        for tx in (gx.chain(gx.clip_by_value(np.inf), gx.clip_by_norm(np.inf)), gx.clip_by_rms(np.inf)):
            state = gx.set_hyperparams(tx.init(params), dict.fromkeys(gx.hyperparams(tx.init(params)), np.inf))
            for update in (tx.update, jax.jit(tx.update)):
                updates, _ = update(params, state, params)
                jax.tree.map(np.testing.assert_array_equal, updates, params)
