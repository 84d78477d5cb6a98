"""Estimates of trainings over many devices: beside papers, by hand, and beside what XLA compiles."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec as P

import gradtx as gx

SCRIPT = Path(__file__).parents[1] / "scripts" / "placements.py"


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def test_the_figure_of_the_paper():
    """ZeRO, figure 1: 7.5 billion parameters in 16 bits, 12 bytes of state for each, 64 devices: GB on each."""
    params = {"w": jax.ShapeDtypeStruct((7_500, 1_000_000), jnp.bfloat16)}
    rows = gx.estimate(gx.amsgrad(0.1), params, {"data": 64}).placements  # three slots of 4 bytes

    def held(row):
        return (row.parameters + row.gradients + row.state) / 1e9

    assert [round(held(row), 1) for row in rows.values()] == [120.0, 31.4, 16.6, 1.9]
    sent = [row.network / (2 * 7.5e9 * 63 / 64) for row in rows.values()]  # in parameters, section 7
    assert sent == pytest.approx([2, 3, 2, 2])
    scanned = [*gx.estimate(gx.amsgrad(0.1), params, {"data": 64}, scanned=100).placements.values()]
    assert scanned[3].network / (2 * 7.5e9 * 63 / 64) == pytest.approx(3)  # half more than data parallelism
    assert scanned[3].memory == pytest.approx(16 * 7.5e9 / 64 + 4 * 7.5e9 / 100)
    assert scanned[0].temporaries == scanned[1].temporaries == 2 * 15e9 / 100
    assert scanned[2].gradients == 15e9 and scanned[2].temporaries == pytest.approx(30e9 / 64)


def test_by_hand():
    """Leaves over another axis, one that the axis does not divide, gradients of another dtype, and times."""
    params = shapes(w=(6, 16), odd=(3, 5)) | {"frozen": jax.ShapeDtypeStruct((4,), jnp.int32)}
    specs = {"w": P("model"), "odd": P(), "frozen": P()}
    tx = gx.chain(gx.where("frozen", gx.freeze()), gx.where("w|odd", gx.sgd(0.1, momentum=0.9)))
    found = gx.estimate(tx, params, {"data": 4, "model": 2}, specs=specs, gradients="bfloat16", network=1e3, memory=1e6)
    assert found.parameters == 96 + 15 + 4 and found.undivided == {"odd": 60}
    scalars = found.placements["replicated"].state - 4 * (48 + 15)
    assert 0 < scalars < 40
    shard = scalars + 4 * (12 + 15)
    p, g = 4 * (48 + 15 + 4), 2 * (48 + 15)
    p_shard, g_shard = 4 * (12 + 15 + 1), 2 * (12 + 15)
    assert found.placements == {
        "replicated": (p, g, 4 * 63 + scalars, g, 2 * 94, g + 2 * p + 2 * (4 * 63 + scalars)),
        "ZeRO-1, out_shardings": (p, g, shard, g, 2 * 94 + 156, g_shard + 2 * p_shard + 2 * shard),
        "ZeRO-1, reduce-scatter": (p, g_shard, shard, 52 + 30, 72 + 44 + 156, g_shard + 2 * p_shard + 2 * shard),
        "fully sharded": (p_shard, g_shard, shard, 208 + 30, 156 + 72 + 44, g_shard + 2 * p_shard + 2 * shard),
    }
    row = found.placements["fully sharded"]
    assert found.seconds("fully sharded") == pytest.approx(row.network / 1e3 + row.optimizer / 1e6)
    assert str(found).splitlines()[-1] == "not divided: odd, 60 B"


@pytest.mark.parametrize("devices", [8, 512, 16_384])
def test_a_trillion_parameters_make_no_array(devices):
    before = len(jax.live_arrays())
    for width in (4096, 131_072):  # 1.1e9 and 1.1e12 of them
        params = shapes(w=(64, width, width), embedding=(50_257, width), bias=(64, width))
        mesh = AbstractMesh((devices // 8, 8), ("data", "model"))
        tx = gx.accumulate(gx.skip_nonfinite(gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(1e-4))), 8)
        found = gx.estimate(tx, params, mesh, specs=P(), scanned=64, network=1e11, memory=1e12)
        assert max(map(len, str(found).splitlines())) <= 80
        whole, *_, least = found.placements.values()
        assert whole.state == pytest.approx(3 * 4 * found.parameters, rel=1e-6)  # m, v and the sums of accumulate
        assert least.state * (devices // 8) == pytest.approx(whole.state, rel=1e-4)  # scalars stay
        assert whole.network == pytest.approx(2 * 4 * found.parameters * (1 - 8 / devices), abs=2)
    assert len(jax.live_arrays()) == before


def test_what_is_refused():
    tx, params = gx.sgd(0.1), shapes(w=(8, 4))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("axis 'rows' is none of the mesh, which has 'data'", {"axis": "rows"}),
        ("specs shard leaf 'w' over 'data'", {"specs": P("data")}),
        ("network must be above 0, found 0", {"network": 0}),
        ("scanned must be an integer from 1", {"scanned": 0}),
    ]
    for message, kwargs in cases:
        with pytest.raises(ValueError, match=message):
            gx.estimate(tx, params, {"data": 8}, **kwargs)


@pytest.mark.parametrize("how", ["", pytest.param("scanned", marks=pytest.mark.exhaustive)])
def test_beside_what_is_compiled(how):
    """Arguments and collectives of compiled steps on eight devices to 1 %, the peak of memory to 5, or 35."""
    command = [sys.executable, "-W", "error", str(SCRIPT), *how.split()]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.stdout.endswith("ok\n"), f"{done.stdout}\n{done.stderr[-3000:]}"
