"""Rules of one's own: each mistake of an author is refused in words; what is right by itself stays so."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradtx as gx

PARAMS = {"w": jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]), "b": jnp.array([0.5, -0.5])}


class anchored(gx.Rule):
    """A pull to where the parameters were at the start."""

    equation = r"u \leftarrow u + \lambda (p - a)"
    accumulates = False
    needs_params = True

    rate: gx.Hyper = gx.hyper(default=0.1)

    def slots(self, param):
        return {"a": param, "again": jax.device_put(param)}  # the second is another array in the same memory

    def apply(self, signal, slots, param, c):
        return signal._replace(direction=signal.direction + c.rate * (param - slots.a)), vars(slots)


@pytest.mark.parametrize(
    "tx", [anchored(), gx.chain(gx.seal(anchored())), gx.chain(optax.contrib.mechanize(optax.sgd(0.1)))]
)
def test_a_fresh_state_shares_no_memory_with_the_parameters(tx):
    params = jax.tree.map(jnp.copy, PARAMS)
    expected, _ = gx.step(tx, params, PARAMS, tx.init(params))
    step = jax.jit(lambda params, state: gx.step(tx, params, PARAMS, state), donate_argnums=(0, 1))
    found, _ = step(params, tx.init(params))  # XLA refuses to be given the same memory twice
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_pickles(protocol):
    phases = gx.switch(2, gx.adam(0.1), gx.chain(gx.sgd(0.1)), carry="reset")
    for tx in (gx.momentum(0.5), gx.adamw(0.1), gx.packed(gx.adam(0.1)), gx.accumulate(phases, 2)):
        state = tx.init(PARAMS)
        again = pickle.loads(pickle.dumps(tx, protocol))
        assert again == tx and hash(again) == hash(tx) and repr(again) == repr(tx)
        assert jax.tree.structure(again[0](PARAMS)) == jax.tree.structure(state)


def test_descends_along_the_conjugate_of_the_gradient_of_a_complex_parameter():
    centre, z = 1.0 - 2.0j, np.complex64(3.0 + 1.0j)
    tx, params = gx.sgd(0.1), jnp.asarray(z)
    state = tx.init(params)
    for _ in range(5):
        grads = jax.grad(lambda x: jnp.abs(x - centre) ** 2)(params).conj()
        params, state = gx.step(tx, params, grads, state)
        z = z - 0.1 * 2 * (z - centre)  # the gradient by real and imaginary part
    np.testing.assert_allclose(params, z, rtol=1e-5)
