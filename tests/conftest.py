"""Shared by all tests: float64 and quick compilation on demand, and hypothesis profiles."""

import itertools
import os

import hypothesis
import jax
import pytest
from jax._src import compiler  # has the only place where options for all compilations can be set

# No deadlines: the first example of a test compiles. CI draws the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, max_examples=18)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=18, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))

collect_ignore = ["scripts/wrong_types.py"]  # for type checkers only; to run, it is wrong as well

jax.config.update("jax_numpy_rank_promotion", "raise")  # an array of another rank is broadcast where one says so

_tests = itertools.count(1)


def pytest_runtest_teardown():
    """Programs of thousands of tests would fill the memory, and slow every later collection of garbage."""
    if next(_tests) % 150 == 0:
        jax.clear_caches()


@pytest.fixture(scope="module")
def x64():
    """Float64 for a module of tests: ``pytestmark = pytest.mark.usefixtures("x64")``."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def ranks_promoted():
    """For a module of tests that run layers of others, or programs of users, which add vectors to matrices."""
    with jax.numpy_rank_promotion("allow"):
        yield


QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@pytest.fixture(scope="module")
def quick_compilation():
    """For a module of tests that need not see every bit as users do: XLA's older emitter of kernels.

    It saves two fifths of the time; jax's public option, which ``gradtx.testing`` takes, saves an eighth of it.
    In the processes that a test starts, too. With a jaxlib that does not know these options, compilation is as always.
    """
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=dict(QUICK))
    except jax.errors.JaxRuntimeError:
        yield
        return
    original = compiler.get_compile_options

    def quick(*args, env_options_overrides=None, **kwargs):
        return original(*args, env_options_overrides=QUICK | (env_options_overrides or {}), **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quick)
        patch.setenv("XLA_FLAGS", " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items()))
        yield
    jax.clear_caches()  # the next module may need every bit
