"""A training by several processes, the example of the guide: killed, and gone on with by more or by fewer of them."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLE), f"--folder={folder}", f"--processes={count}", f"--every={SAVED}"]
    command += [f"--coordinator=127.0.0.1:{port}", f"--steps={steps}", f"--heartbeat={HEARTBEAT}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    run: Any = [
        subprocess.Popen([*command, f"--process={i}"], env=env, stdout=PIPE, stderr=subprocess.DEVNULL, text=True)
        for i in range(count)
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


def test_a_run_goes_on_from_what_it_has_saved(tmp_path):
    whole = processes.train(tmp_path / "whole", 4, 2)
    shutil.copytree(tmp_path / "whole" / "2", tmp_path / "half" / "2")
    again = processes.train(tmp_path / "half", 4, 2)
    for name, p in whole.items():
        np.testing.assert_allclose(again[name], p, rtol=0, atol=1e-6)
