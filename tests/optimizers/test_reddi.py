"""Where Adam goes the wrong way: the examples of Reddi, Kale & Kumar (2018), in float64.

Online convex optimisation on [-1, 1]: losses f_t(x) = c_t·x that on average fall towards -1. Adam ends at +1, the worst
point; AMSGrad and the review article's max-V end at -1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64")


def play(tx, slopes, x: Any = 0.0):
    """Projected steps against linear losses: the final x, and the mean regret against always playing -1.

    An array is as many games as it has elements.
    """

    def one(carry, slope):
        x, state = carry
        updates, state = tx.update(jnp.broadcast_to(slope, x.shape), state, x)
        return (jnp.clip(x + updates, -1.0, 1.0), state), slope * (x + 1.0)

    x = jnp.asarray(x, jnp.float64)
    (x, _), regrets = jax.jit(lambda: jax.lax.scan(one, (x, tx.init(x)), jnp.asarray(slopes)))()
    return np.asarray(x), np.asarray(regrets.mean(0))


def falling(alpha):
    return lambda count: alpha / jnp.sqrt(count + 1.0)


def adam(lr, b1, b2):  # as the paper writes it: nothing debiased
    return gx.chain(gx.momentum(b1), gx.rms(b2), gx.precondition(0.0), gx.scale_by_learning_rate(lr))


def amsgrad(lr, b1, b2):
    return gx.chain(gx.momentum(b1), gx.rms(b2), gx.max_v(), gx.precondition(0.0), gx.scale_by_learning_rate(lr))


def max_v(lr, b1, b2):
    return gx.article_max_v(lr, b1, b2)


@pytest.mark.parametrize("c", [3.0, pytest.param(10.0, marks=pytest.mark.exhaustive)])
def test_theorem_1(c):
    """f_t = C·x if t mod 3 = 1, else -x; β₁ = 0 and β₂ = 1/(1 + C²). From wherever one starts."""
    x = [-1.0, 0.0, 1.0]
    slopes = np.tile([c, -1.0, -1.0], 100_000)
    b2 = 1 / (1 + c**2)
    end, regret = play(adam(falling(0.1), 0.0, b2), slopes, x)
    np.testing.assert_allclose(end, 1.0, atol=1e-2)
    np.testing.assert_allclose(regret, 2 * (c - 2) / 3, atol=0.02)  # the exact limit of the average regret
    for good in (amsgrad, max_v):
        end, regret = play(good(falling(0.1), 0.0, b2), slopes, x)
        np.testing.assert_allclose(end, -1.0, atol=1e-2)
        assert (regret < 0.01).all()
    end, _ = play(gx.sgd(falling(0.1)), slopes, x)
    np.testing.assert_allclose(end, -1.0, atol=1e-2)


def test_gradtx_adam_with_debias_goes_wrong_too():
    c = 3.0
    end, _ = play(gx.adam(falling(0.1), 0.0, 1 / (1 + c**2)), np.tile([c, -1.0, -1.0], 100_000))
    assert end == pytest.approx(1.0, abs=1e-2)


@pytest.mark.exhaustive
def test_section_5_online():
    """f_t = 1010x if t mod 101 = 1, else -10x; β = (0.9, 0.99). End points measured with an independent program."""
    slopes = np.tile([1010.0] + [-10.0] * 100, 10_000)
    assert play(adam(1e-3, 0.9, 0.99), slopes[:101_000])[0] == pytest.approx(1.0, abs=1e-3)
    assert play(amsgrad(1e-3, 0.9, 0.99), slopes[:101_000])[0] == pytest.approx(-0.0797, abs=1e-3)
    assert play(amsgrad(1e-3, 0.9, 0.99), slopes)[0] == pytest.approx(-0.789, abs=2e-3)
    assert play(max_v(1e-3, 0.9, 0.99), slopes)[0] == pytest.approx(-0.101, abs=2e-3)
    assert play(gx.amsgrad(1e-3, 0.9, 0.99), slopes)[0] == pytest.approx(-0.787, abs=2e-3)  # in torch's order


@pytest.mark.exhaustive
def test_section_5_with_a_falling_rate():
    slopes = np.tile([1010.0] + [-10.0] * 100, 10_000)
    end, _ = play(adam(falling(0.5), 0.9, 0.99), slopes[:10_100])
    assert end == pytest.approx(1.0, abs=1e-3)
    assert play(amsgrad(falling(0.5), 0.9, 0.99), slopes[:101_000])[0] == pytest.approx(-0.978, abs=1e-3)
    assert play(amsgrad(falling(0.5), 0.9, 0.99), slopes)[0] == pytest.approx(-0.9973, abs=1e-4)
    assert play(max_v(falling(0.5), 0.9, 0.99), slopes)[0] == pytest.approx(-0.779, abs=1e-3)


@pytest.mark.exhaustive
def test_section_5_stochastic():
    """1010x with probability 0.01, else -10x."""
    slopes = np.where(np.random.default_rng(0).random(1_000_000) < 0.01, 1010.0, -10.0)
    assert play(adam(falling(0.5), 0.9, 0.99), slopes)[0] > 0.99
    assert play(amsgrad(falling(0.5), 0.9, 0.99), slopes)[0] < -0.5


def test_tran_and_phong_example():
    """Tran & Phong (2019), example 3.2: AMSGrad with β₁ₜ = 0.9·0.001^(t−1), a schedule on the momentum."""
    tx = gx.chain(
        gx.momentum(lambda count: 0.9 * 0.001**count), gx.rms(0.999), gx.max_v(), gx.precondition(0.0),
        gx.scale_by_learning_rate(falling(0.001)),
    )  # fmt: skip
    x = jnp.asarray(1.0, jnp.float64)
    state = tx.init(x)
    seen = []
    for slope in (1010.0, -10.0):
        updates, state = tx.update(jnp.asarray(slope, jnp.float64), state)
        x = optax.apply_updates(x, updates)
        seen.append(np.asarray(x))
    np.testing.assert_allclose(seen, [0.9968377223398316, 0.9970569034941291], rtol=1e-12)
