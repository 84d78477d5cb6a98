"""Trainings with slots in fewer bits, beside float32: see ``scripts/formats.py``."""

import pytest
from scripts.formats import TASKS, results


@pytest.mark.exhaustive
@pytest.mark.parametrize("task", TASKS)
def test_trainings_end_as_in_float32(task):
    """Within the spread of five seeds, and without a step that is much longer than any of float32."""
    wide, longest = results(task, "float32")
    for storage in ("bfloat16_stochastic", "root8"):
        losses, step = results(task, storage)
        assert abs((losses - wide).mean()) < wide.std(), (storage, losses, wide)
        assert step < 10 * longest, (storage, step, longest)
