"""The catalog over several devices and in jax's modes; on one device, ``test_contract.py`` asks the same of all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODES = Path(__file__).parent / "modes.py"
MIXED = ["monitor(2)", "accumulate"]  # norms, sums, conditions and a guard; the others are exhaustive


def on_four_devices(names):
    command = [sys.executable, "-W", "error", str(MODES), *names]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.count("\n") >= len(names), done.stdout


@pytest.mark.slow
def test_on_four_devices():
    on_four_devices(MIXED)


@pytest.mark.exhaustive
def test_everything_on_four_devices():
    on_four_devices([])
