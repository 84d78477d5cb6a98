"""ReLU and maxout: values, derivatives, and what the review article says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import gradtx as gx

pytestmark = pytest.mark.usefixtures("quick_compilation")

seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_relu():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(gx.relu(x), [0, 0, 0, 3, np.inf, 0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(gx.relu))(x), [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(jax.jit(gx.relu)(x), jax.nn.relu(x))
    assert np.isnan(gx.relu(jnp.nan))
    assert jax.grad(jax.grad(gx.relu))(2.0) == 0.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes(dtype):
    x = jnp.ones(4, dtype)
    assert gx.relu(x).dtype == dtype
    assert jax.grad(lambda x: gx.relu(x).sum())(x).dtype == dtype
    assert gx.maxout(x, 2).dtype == dtype


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_maxout_is_the_maximum_of_consecutive_groups(seed, group_size, groups):
    x = normal(seed, 2, groups * group_size)
    rows = np.asarray(x)
    expected = [[max(row[i : i + group_size]) for i in range(0, len(row), group_size)] for row in rows]
    np.testing.assert_array_equal(gx.maxout(x, group_size), expected)
    order = np.random.default_rng(seed).permutation(group_size)
    shuffled = rows.reshape(2, groups, group_size)[..., order].reshape(rows.shape)
    np.testing.assert_array_equal(gx.maxout(jnp.asarray(shuffled), group_size), expected)
    np.testing.assert_array_equal(gx.maxout(x, 1), x)


@given(seeds)
def test_maxout_of_affine_functions_is_convex(seed):
    w, b, x, y = normal(seed, 3, 6), normal(seed + 1, 6), normal(seed + 2, 3), normal(seed + 3, 3)

    def f(x):
        return gx.maxout(x @ w + b, 3)

    for t in (0.25, 0.5, 0.75):
        assert bool((f(t * x + (1 - t) * y) <= t * f(x) + (1 - t) * f(y) + 1e-5).all())


def test_maxout_has_as_many_pieces_as_the_group_has_elements():
    """Four tangents of x² make a function of four linear pieces; relu is the maxout of x and 0."""
    at = jnp.array([-1.5, -0.5, 0.5, 1.5])
    slopes = jax.vmap(jax.grad(lambda x: gx.maxout(2 * at * x - at**2, 4)[0]))(jnp.linspace(-3, 3, 1001))
    assert sorted({float(slope) for slope in slopes}) == [-3.0, -1.0, 1.0, 3.0]
    x = jnp.linspace(-1, 1, 11)
    np.testing.assert_array_equal(gx.maxout(jnp.stack([x, 0 * x], -1), 2)[:, 0], gx.relu(x))


def test_ties_share_the_gradient():
    np.testing.assert_allclose(jax.grad(lambda x: gx.maxout(x, 3)[0])(jnp.array([1.0, 1.0, 0.0])), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(jax.grad(lambda x: gx.maxout(x, 3)[0])(jnp.zeros(3)), np.full(3, 1 / 3), rtol=1e-6)


def test_maxout_shapes():
    assert gx.maxout(jnp.ones((2, 3, 8)), 4).shape == (2, 3, 2)
    assert gx.maxout(jnp.ones((0, 4)), 2).shape == (0, 2)
    assert np.isnan(gx.maxout(jnp.array([jnp.nan, 1.0]), 2)).all()
