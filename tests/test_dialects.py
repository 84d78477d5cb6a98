"""The dialects against the real torch and Keras: stored trajectories always, the frameworks where installed."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.cases import CASES
from oracles.compare import GOLDENS, make, table, trajectory, update
from oracles.generate import run_keras, run_torch
from trajectories import run as run_stream

import gradtx as gx
from gradtx import dialects

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def by_case(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def live(framework):
    """For each set of arguments one case in most runs: what a framework does stays while its version is pinned."""
    cases = [case for case in CASES if case.framework == framework]
    rest = {case.id for case in cases if (case.problem, case.schedule) != ("stochastic", "decaying")}
    return by_case([pytest.param(case, marks=[pytest.mark.exhaustive] * (case.id in rest)) for case in cases])


@by_case(CASES)
def test_same_trajectory_as_stored(case):
    golden = GOLDENS[case.framework][case.id]
    np.testing.assert_allclose(trajectory(case, make(case)), golden, rtol=1e-10, atol=1e-10)
    assert np.ptp(golden, axis=0).max() > 1e-3  # it went somewhere


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: extra [oracles]")
@live("torch")
def test_stored_is_what_torch_does(case):
    np.testing.assert_allclose(run_torch(case), GOLDENS["torch"][case.id], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised within Keras
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed: extra [oracles]")
@live("keras")
def test_stored_is_what_keras_does(case):
    np.testing.assert_allclose(run_keras(case), GOLDENS["keras"][case.id], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam"])
def test_the_frameworks_are_not_the_same(optimizer):
    """The goldens tell the frameworks apart, so that a dialect cannot pass with the other's order."""
    moved = 0.0
    for case in CASES:
        if case.optimizer == optimizer and case.variant == "all" and case.schedule == "decaying":
            theirs = GOLDENS[case.framework][case.id]
            plain = getattr(gx, optimizer)(case.lr)
            moved = max(moved, abs(trajectory(case, plain) - theirs).max())
    assert moved > 1e-3


SCHEDULE = optax.exponential_decay(0.03, 1, 0.95)
OPTAX = {
    "sgd": ({}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}),
    "adagrad": ({}, {"initial_accumulator_value": 0.0, "eps": 1e-3}),
    "rmsprop": (
        {},
        {"decay": 0.8, "eps": 1e-2, "eps_in_sqrt": False},
        {"momentum": 0.9, "nesterov": True},
        {"centered": True, "eps": 1e-3},
        {"bias_correction": True, "momentum": 0.5},
    ),
    "adam": ({}, {"b1": 0.8, "b2": 0.95, "eps": 1e-2, "eps_root": 1e-3}),
    "adamw": ({}, {"weight_decay": 0.3}),
    "amsgrad": ({}, {"b2": 0.9, "eps": 1e-2}),
    "nadam": ({}, {"b1": 0.8}),
    "nadamw": ({}, {"weight_decay": 0.3}),
}


@pytest.mark.parametrize("rate", [0.01, SCHEDULE], ids=["constant", "scheduled"])
@pytest.mark.parametrize(("name", "kwargs"), [(name, kwargs) for name, all_ in OPTAX.items() for kwargs in all_])
def test_same_trajectory_as_optax(name, kwargs, rate):
    ours = run_stream(getattr(dialects.optax, name)(rate, **kwargs))
    theirs = run_stream(getattr(optax, name)(rate, **kwargs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), ours, theirs)


@pytest.mark.parametrize("clip", ["clip", "clip_by_global_norm"])
def test_clips_of_optax(clip):
    ours = run_stream(gx.chain(getattr(dialects.optax, clip)(1.5), dialects.optax.sgd(0.1)))
    theirs = run_stream(optax.chain(getattr(optax, clip)(1.5), optax.sgd(0.1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


class TestKerasOwnGoldens:
    """Numbers from Keras's own unit tests: gradients 0.01 ten times, then 0.1 to 1.0, from ones, in float32 there."""

    def rows(self, tx, steps):
        first = np.full(10, 0.01)
        grads = [first, *[np.arange(0.1, 1.1, 0.1)] * (steps - 1)]
        params, state, out = jnp.ones(10), tx.init(jnp.ones(10)), []
        for g in grads:
            params, state = update(tx, jnp.asarray(g), state, params)
            out.append(np.asarray(params))
        return np.stack(out)

    def test_adamw_pins_where_epsilon_stands(self):
        keras = self.rows(dialects.keras.adamw(1.0, weight_decay=0.5, epsilon=2.0), 2)
        np.testing.assert_allclose(keras[0], 0.4998, atol=5e-4)
        np.testing.assert_allclose(keras[1][[0, -1]], [0.2486, 0.2382], atol=5e-4)
        optax_order = self.rows(dialects.optax.adamw(1.0, weight_decay=0.5, eps=2.0), 2)
        assert abs(optax_order[0] - 0.4998).max() > 1e-3  # the order of division and debias shows

    def test_nadam_pins_the_schedule(self):
        keras = self.rows(dialects.keras.nadam(0.5, beta_1=0.5, beta_2=0.67, epsilon=1e-5), 5)
        np.testing.assert_allclose(keras[:, 0], [0.4281, -0.1738, -0.7115, -1.2335, -1.7492], atol=5e-4)
        torch = self.rows(dialects.torch.nadam(0.5, betas=(0.5, 0.67), eps=1e-5), 5)
        assert abs(torch[:, 0] - keras[:, 0]).max() > 1e-2
        same = self.rows(dialects.torch.nadam(0.5, betas=(0.5, 0.67), eps=1e-5, momentum_decay=1.0), 5)
        np.testing.assert_allclose(same, keras, rtol=1e-12)

    SINGLE = (
        (dialects.keras.rmsprop(0.5), [-0.5811, 0.4189, 1.4189, 2.4189]),
        (dialects.keras.adagrad(0.5), [0.5233, 1.5007, 2.5005, 3.5061]),
        (dialects.keras.nadam(0.5), [0.4686, 1.4686, 2.4686, 3.4686]),
    )

    @pytest.mark.parametrize(("tx", "expected"), SINGLE, ids=["rmsprop", "adagrad", "nadam"])
    def test_single_steps(self, tx, expected):
        params, grads = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 6.0, 7.0, 2.0])
        stepped, _ = update(tx, grads, tx.init(params), params)
        np.testing.assert_allclose(stepped, expected, atol=5e-4)

    def test_rmsprop_docstring(self):
        tx, x = dialects.keras.rmsprop(0.1), jnp.array(10.0)
        stepped, _ = update(tx, x, tx.init(x), x)  # the gradient of x²/2
        assert float(stepped) == pytest.approx(9.683772, abs=1e-6)


class TestErrors:
    def test_torch(self):
        for bad in ({}, {"momentum": 0.9, "dampening": 0.5}):
            with pytest.raises(ValueError, match=r"nesterov=True needs a momentum.*dampening=0"):
                dialects.torch.sgd(nesterov=True, **bad)

    def test_keras(self):
        with pytest.raises(ValueError, match=r"at most one of clipnorm.*\['clipnorm', 'clipvalue'\]"):
            dialects.keras.adam(clipnorm=1.0, clipvalue=1.0)
        with pytest.raises(ValueError, match=r"global_clipnorm must be positive, found 0\. Keras would clip nothing"):
            dialects.keras.sgd(global_clipnorm=0.0)

    def test_optax(self):
        with pytest.raises(ValueError, match="centered=True with bias_correction=True"):
            dialects.optax.rmsprop(0.1, centered=True, bias_correction=True)


def test_the_table_in_the_docs_is_up_to_date():
    """Its chains, line by line; the figures are those of the run that wrote it."""
    shown = (Path(__file__).parent.parent / "docs" / "dialects.md").read_text()
    for line in table(run=False).splitlines():
        assert line.rsplit("|", 3)[0] in shown, f"python -m tests.oracles.compare > docs/dialects.md: {line}"
