"""Rules at their edges, by hand: single elements, zeros, ties, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradtx as gx

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


def steps(tx, gradients, params=0.0):
    """The update of each gradient in turn, the parameters staying where they are."""
    params = jnp.broadcast_to(jnp.asarray(params, float), np.shape(gradients[0]))
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for g in gradients:
        out, state = update(jnp.asarray(g, float), state, params)
        found.append(np.asarray(out))
    return found


def test_cautious():
    """A gradient of 0 agrees with no direction; one element is all of its leaf; the share is never below the floor."""
    tx = gx.chain(gx.momentum(0.5), gx.cautious(0.5))
    first, second = steps(tx, [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 0.0, -1.0]])
    np.testing.assert_allclose(first, [2.0] * 4)
    np.testing.assert_allclose(second, [6.0, 6.0, 0.0, 0.0])  # (2 + 4)/2, twice as long for half of them
    np.testing.assert_allclose(steps(tx, [[4.0]])[0], [2.0])
    np.testing.assert_allclose(steps(tx, [[4.0] * 4, [4.0, 0.0, 0.0, 0.0]])[1], [6.0, 0.0, 0.0, 0.0])  # not 4 times


@pytest.mark.parametrize(
    ("g", "p", "expected"),
    [
        ([0.6, 0.8], [3.0, 4.0], [0.6 * 5, 0.8 * 5]),  # a direction of length 1 is nothing special
        ([3.0, 4.0], [0.6, 0.8], [0.6, 0.8]),
        ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0]),
        ([0.0, 0.0], [3.0, 4.0], [0.0, 0.0]),
    ],
)
def test_trust_ratio(g, p, expected):
    np.testing.assert_allclose(steps(gx.scale_by_trust_ratio(), [g], p)[0], expected, rtol=1e-12)


def test_trust_ratio_with_its_options():
    (found,) = steps(gx.scale_by_trust_ratio(0.1, eps=5.0), [[3.0, 4.0]], [30.0, 40.0])
    np.testing.assert_allclose(found, [3.0 * 0.1 * 50 / 10, 4.0 * 0.1 * 50 / 10], rtol=1e-12)
    (found,) = steps(gx.scale_by_trust_ratio(floor=10.0), [[3.0, 4.0]], [0.0, 0.0])
    np.testing.assert_allclose(found, [3.0, 4.0], rtol=1e-12)


def test_sizes_of_parameters():
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(1e-3), [[1.0, 2.0]], [3.0, 4.0])[0] ** 2, [12.5, 50.0])
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(1e-3), [[2.0]], [-3.0])[0], [6.0])
    np.testing.assert_allclose(steps(gx.scale_by_parameter_rms(0.5), [[2.0]], [0.1])[0], [1.0])
    np.testing.assert_allclose(steps(gx.clip_by_rms(1.0), [[2.0]])[0], [1.0])
    np.testing.assert_allclose(steps(gx.clip_by_rms(1.0), [[7.0, 1.0]])[0], [1.4, 0.2])


@pytest.mark.parametrize(
    "rule", [gx.scale_by_trust_ratio(), gx.scale_by_parameter_rms(), gx.add_decayed_weights(0.1)], ids=str
)
def test_what_reads_the_parameters_says_so(rule):
    with pytest.raises(ValueError, match="reads the parameters"):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)))
