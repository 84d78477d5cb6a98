"""Shared by all tests: float64 on demand, and hypothesis profiles."""

import itertools
import os

import hypothesis
import jax
import pytest

# No deadlines: the first example of a test compiles. CI draws the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

collect_ignore = ["wrong_types.py"]  # for type checkers only; to run, it is wrong as well

_tests = itertools.count(1)


def pytest_runtest_teardown():
    """What thousands of tests compiled would fill the memory, and slow every later collection of garbage."""
    if next(_tests) % 150 == 0:
        jax.clear_caches()


@pytest.fixture(scope="module")
def x64():
    """Float64 for a module of tests: ``pytestmark = pytest.mark.usefixtures("x64")``."""
    with jax.enable_x64(True):
        yield
