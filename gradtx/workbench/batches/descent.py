"""The training loss over all images after each single step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradtx.workbench.networks import Network, Params
from gradtx.workbench.training import Data, begin, cross_entropy, shuffled_batches, step_on

__all__ = ["descend"]


def descend(
    network: Network, tx: optax.GradientTransformation, data: Data, *, steps: int, batch_size: int, seed: int
) -> np.ndarray:
    """The training loss before and after each of the first steps of ``train`` with this seed: float32 (steps + 1,)."""
    data = jax.device_put(data)
    params, state, shuffle_key = begin(network, tx, jax.random.key(seed))
    epochs = -(-steps // (data.size // batch_size))
    keys = [jax.random.fold_in(shuffle_key, number) for number in range(1, epochs + 1)]
    rows = jnp.concatenate([shuffled_batches(key, data.size, batch_size) for key in keys])[:steps]
    return np.asarray(_losses(network, tx, params, state, data, rows))


@functools.partial(jax.jit, static_argnames=("network", "tx"))
def _losses(
    network: Network, tx: optax.GradientTransformation, params: Params, state: Any, data: Data, rows: jax.Array
) -> jax.Array:
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)

    def loss(params: Params) -> jax.Array:
        return cross_entropy(network.apply(params, images), labels)

    def one(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        params, state, _ = step_on(network, tx, data, *carry, rows)
        return (params, state), loss(params)

    return jnp.concatenate([loss(params)[None], jax.lax.scan(one, (params, state), rows)[1]])
