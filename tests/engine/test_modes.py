"""The catalog over several devices and in jax's modes; on one device, ``test_contract.py`` asks the same of all."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from catalog import ALL

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODES = Path(__file__).parents[1] / "scripts" / "modes.py"
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
