"""Running an optimizer over a fixed stream of gradients, to compare it with another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 60
PULL = 0.1


def stream(steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Random gradients for two leaves, (steps, ...) each; some entries are zero and some steps large."""
    rng = np.random.default_rng(seed)
    noise = {"a": rng.normal(size=(steps, 3)), "b": rng.normal(size=(steps, 2, 2))}
    noise["a"][::3, 1] = 0.0
    noise["b"][5] *= 30.0
    return noise


def start() -> dict[str, Any]:
    """Float64 parameters that fit the stream."""
    return {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.1, 0.2], [-3.0, 4.0]])}


def run(tx: optax.GradientTransformation, steps: int = STEPS, seed: int = 0) -> Any:
    """The parameters after each step, (steps, ...) each; the gradient is the stream plus a pull to the origin."""
    tx = optax.with_extra_args_support(tx)

    def one(carry, noise):
        params, state = carry
        grads = jax.tree.map(lambda n, p: n + PULL * p, noise, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = start()
    return jax.jit(lambda: jax.lax.scan(one, (params, tx.init(params)), stream(steps, seed))[1])()
