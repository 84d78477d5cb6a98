"""A training by several processes, the example of the guide: killed, and gone on with by more or by fewer of them."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

from docs import processes

pytestmark = pytest.mark.usefixtures("quick_compilation", "ranks_promoted")

KILLS = int(os.environ.get("KILLS", "0"))  # random ones behind those below: KILLS=20 pytest -n0 -m "" -k processes
EXAMPLE = Path(processes.__file__)
HEARTBEAT = 5
SAVED = 3  # steps between two checkpoints
KILLED = [(2, "worker"), (4, "coordinator"), (1, "coordinator"), (4, "worker"), (2, "coordinator")]


@contextlib.contextmanager
def started(folder, count, steps):
    """So many processes of one run, and none of them afterwards."""
    command = [str(EXAMPLE), f"--folder={folder}", f"--processes={count}", f"--every={SAVED}", f"--steps={steps}"]
    command += [f"--coordinator=127.0.0.1:{free_port()}", f"--heartbeat={HEARTBEAT}"]
    with launched([[*command, f"--process={i}"] for i in range(count)]) as run:
        yield run


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def launched(commands):
    """Processes of Python with one device each, and none of them afterwards."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run: Any = [
        subprocess.Popen([sys.executable, *command], env=env, stdout=PIPE, stderr=subprocess.DEVNULL, text=True)
        for command in commands
    ]
    try:
        yield run
    finally:
        for process in run:
            process.kill()
            process.wait()


def complete(folder):
    """The last step that is saved; Orbax writes to a folder of another name until all of it is there."""
    return max((int(path.name) for path in (folder / "saved").glob("*") if path.name.isdigit()), default=0)


@pytest.mark.exhaustive  # .ci/run runs it
def test_processes_that_are_killed_lose_no_step_that_was_saved(tmp_path):
    """SIGKILL of a worker and of the coordinator: the others end too, and 1, 2 or 4 go on from what was saved last."""
    rng = random.Random(KILLS)
    kills = KILLED + [(rng.choice([1, 2, 4]), rng.choice(["worker", "coordinator"])) for _ in range(KILLS)]
    steps = 30 + 20 * len(kills)
    saved, began = 0, []
    for count, victim in [*kills, (1, None)]:
        with started(tmp_path, count, steps) as run:
            lines = (line for line in run[0].stdout if not line.startswith("[Gloo]"))
            began.append(int(next(lines).removeprefix("from ")))
            assert began[-1] == saved
            if victim is None:
                assert run[0].communicate()[0].split()[-1] == str(steps)
                break
            for _ in range(rng.randrange(1, 20)):
                next(lines)
            killed = run[-1 if victim == "worker" else 0]
            killed.kill()
            at = time.monotonic()
            for process in run:
                process.communicate(timeout=HEARTBEAT + 60)
                assert process.returncode == -(signal.SIGKILL if process is killed else signal.SIGABRT)
            print(f"{count}, {victim}: from {began[-1]}, all ended after {time.monotonic() - at:.1f} s")
        saved = complete(tmp_path)
    assert began[-1] > 0
    undisturbed = processes.train(tmp_path / "undisturbed", steps, steps)
    with np.load(tmp_path / "params.npz") as found:
        worst = max(np.abs(found[name] - p).max() for name, p in undisturbed.items())
    print(f"from {began}, {steps} steps, furthest from the undisturbed run {worst:.1e}")
    assert worst <= 1e-6


SCATTERED = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import gradtx as gx

    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    shapes = {"w": (64, 32), "b": (6,), "odd": (3,)}
    params = {name: jnp.linspace(-1, 1, np.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    base = gx.chain(gx.clip_by_global_norm(1.0), gx.adamw(0.1))
    tx = gx.zero1(base, "data")

    def own(params, state, scale):  # the gradients of a device
        return jax.tree.map(lambda p: jnp.sin(3 * p + scale), params)

    def scattered(params, state, scale):
        return gx.step(tx, params, own(params, state, scale), state)

    def summed(params, state, scale):
        return gx.step(base, params, jax.lax.pmean(own(params, state, scale), "data"), state)

    scales = jax.make_array_from_callback((2,), NamedSharding(mesh, P("data")), np.arange(2.0).__getitem__)
    found = []
    for step, of in (scattered, tx), (summed, base):
        places = gx.state_shardings(of, params, NamedSharding(mesh, P()))
        specs = jax.tree.map(lambda s: s.spec, places)
        state = jax.jit(of.init, out_shardings=places)(params)
        run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), specs, P("data")), out_specs=(P(), specs)))
        after = params
        for _ in range(20):
            after, state = run(after, state, scales)
        found.append(after)
        text = run.lower(after, state, scales).compile().as_text()
        assert ("reduce-scatter(" in text) == (step is scattered)
    for name in params:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)
    print("ok")
"""


@pytest.mark.exhaustive  # .ci/run runs it
def test_a_reduce_scatter_between_processes_is_as_a_sum(tmp_path):
    """zero1 beside psum, in leaves far smaller than those that gloo was seen to spoil (jax-ml/jax#40830)."""
    script, port = tmp_path / "scattered.py", str(free_port())
    script.write_text(textwrap.dedent(SCATTERED))
    with launched([[str(script), port, str(i)] for i in range(2)]) as run:
        for process in run:
            out, _ = process.communicate(timeout=300)
            assert out.splitlines()[-1:] == ["ok"], out


def test_a_run_goes_on_from_what_it_has_saved(tmp_path):
    whole = processes.train(tmp_path / "whole", 4, 2)
    shutil.copytree(tmp_path / "whole" / "2", tmp_path / "half" / "2")
    again = processes.train(tmp_path / "half", 4, 2)
    for name, p in whole.items():
        np.testing.assert_allclose(again[name], p, rtol=0, atol=1e-6)
