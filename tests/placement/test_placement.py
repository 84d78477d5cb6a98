"""States and steps over eight devices, in a process of their own: see ``scripts/placement.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.placement import CLAIMS

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = Path(__file__).parents[1] / "scripts" / "placement.py"
LONG = {
    "slots_on_the_host_make_the_same_steps",
    "zero1_is_data_parallelism",
    "a_divided_state_on_explicit_axes_gives_back_parameters_as_they_were",
    "codes_are_the_same_on_every_mesh",
    "codes_in_shard_map_are_those_of_any_mesh",
    "the_page_shows_what_is_measured",
    "codes_are_restored_on_other_meshes",
    "what_multiplies_matrices_runs_on_explicit_axes",
    "slots_of_everything_are_divided_over_an_axis",
    "zero1_of_everything_is_data_parallelism",
    "zero1_takes_gradients_of_every_kind",
    "slots_of_everything_on_the_host_make_the_same_steps",
    "the_page_shows_all_that_is_measured",
}


def on_eight_devices(names):
    command = [sys.executable, "-W", "error", str(SCRIPT), *names]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.split() == names


NAMES = [claim.__name__ for claim in CLAIMS]


def test_over_eight_devices():
    on_eight_devices([name for name in NAMES if name not in LONG])


@pytest.mark.exhaustive
def test_over_eight_devices_at_length():
    on_eight_devices([name for name in NAMES if name in LONG])
