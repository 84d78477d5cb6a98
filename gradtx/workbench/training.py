"""Training a network with an optimizer, and measuring it after each epoch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import gradtx
from gradtx.workbench.networks import Network, Params

__all__ = ["Data", "History", "Measures", "begin", "cross_entropy", "measure", "run_epoch", "shuffled_batches", "train"]

T = TypeVar("T")


class Data(NamedTuple):
    """Labelled images: float32 (n, inputs) each, and int32 (n,) class numbers."""

    train_images: ArrayLike
    train_labels: ArrayLike
    test_images: ArrayLike
    test_labels: ArrayLike


class Measures(NamedTuple):
    """What is measured at one moment of a training, or, with one axis more in front, after each epoch; float32.

    Attributes:
        train_loss: mean cross-entropy over all training images, in nats.
        train_accuracy: part of them that is classified right, 0 to 1.
        test_loss, test_accuracy: the same over the test images.
        gradient_norms: per layer, the L2 norm of the gradient of ``train_loss`` (as it is before any clipping) with
            respect to the layer's weights and biases; first layer first. One axis more than the others.
    """

    train_loss: Any
    train_accuracy: Any
    test_loss: Any
    test_accuracy: Any
    gradient_norms: Any


class History(NamedTuple):
    """A finished training.

    Attributes:
        params: the trained parameters.
        measures: numpy arrays (epochs + 1, ...): before training, then after each epoch.
        logged: numpy arrays (steps, ...): what ``log`` gave in each step, as a tree like that.
        seconds: wall-clock time, compilation and measuring included.
    """

    params: Params
    measures: Measures
    logged: Any
    seconds: float


def nothing(state: Any) -> None:
    """A log of nothing."""
    del state


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over images of −log softmax(logits)[label], in nats: (n, classes) and (n,) to a scalar."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.partial(jax.jit, static_argnames="network")
def measure(network: Network, params: Params, data: Data) -> Measures:
    """Losses, accuracies and gradient norms of a network as it stands."""

    def loss_and_accuracy(params: Params, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = network.apply(params, images)
        return cross_entropy(logits, labels), jnp.mean(jnp.argmax(logits, axis=-1) == labels)

    with_gradient = jax.value_and_grad(loss_and_accuracy, has_aux=True)
    (train_loss, train_accuracy), gradient = with_gradient(params, data.train_images, data.train_labels)
    test_loss, test_accuracy = loss_and_accuracy(params, jnp.asarray(data.test_images), jnp.asarray(data.test_labels))
    norms = [optax.tree.norm(gradient[f"layer_{i}"]) for i in range(network.depth + 1)]
    return Measures(train_loss, train_accuracy, test_loss, test_accuracy, jnp.stack(norms))


def shuffled_batches(key: jax.Array, images: int, batch_size: int) -> jax.Array:
    """Image numbers in random order, in batches: int32 (images // batch_size, batch_size).

    The images left over for an incomplete batch are dropped, other ones in each epoch.
    """
    batches = images // batch_size
    return jax.random.permutation(key, images)[: batches * batch_size].reshape(batches, batch_size)


@functools.partial(jax.jit, static_argnames=("network", "tx", "batch_size", "log"))
def run_epoch(
    network: Network,
    tx: optax.GradientTransformation,
    batch_size: int,
    params: Params,
    state: Any,
    data: Data,
    key: jax.Array,
    log: Callable[[Any], Any] = nothing,
) -> tuple[Params, Any, Any]:
    """One pass over the shuffled training images, compiled as a whole.

    Returns:
        New parameters, new optimizer state, and what ``log`` made of that state after each step, stacked.
    """
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)

    def one_batch(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], Any]:
        params, state = carry
        grads = jax.grad(lambda p: cross_entropy(network.apply(p, images[rows]), labels[rows]))(params)
        params, state = gradtx.step(tx, params, grads, state)
        return (params, state), log(state)

    carry, logged = jax.lax.scan(one_batch, (params, state), shuffled_batches(key, len(labels), batch_size))
    return *carry, logged


def begin(network: Network, tx: optax.GradientTransformation, key: jax.Array) -> tuple[Params, Any, jax.Array]:
    """Initial parameters, the optimizer's state for them, and the key that each epoch's number is folded into."""
    init_key, shuffle_key = jax.random.split(key)
    params = network.init(init_key)
    return params, tx.init(params), shuffle_key


def train(
    network: Network,
    tx: optax.GradientTransformation,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, Measures], None] | None = None,
    log: Callable[[Any], Any] = nothing,
) -> History:
    """Train a network from scratch with softmax cross-entropy on shuffled mini-batches.

    The same seed gives the same initial weights and the same batches to every optimizer, and the same numbers each
    time on the same machine.

    Args:
        network: what to train.
        tx: the optimizer; hashable, as every gradtx chain is.
        data: what to train and test on.
        epochs: passes over the training images, each without its last incomplete batch.
        batch_size: 1 to the number of training images.
        seed: of the initial weights and of the shuffling.
        progress: called after each epoch with its number, from 1, and what was measured.
        log: called in each step, inside ``jit``, with the optimizer's new state; it gives a tree of
            arrays, such as ``gradtx.metrics``.
    """
    started = time.perf_counter()
    data = jax.device_put(data)
    params, state, shuffle_key = begin(network, tx, jax.random.key(seed))
    measures = [jax.device_get(measure(network, params, data))]
    logged: list[Any] = []
    for epoch in range(1, epochs + 1):
        key = jax.random.fold_in(shuffle_key, epoch)
        params, state, steps = run_epoch(network, tx, batch_size, params, state, data, key, log)
        measures.append(jax.device_get(measure(network, params, data)))
        logged.append(jax.device_get(steps))
        if progress is not None:
            progress(epoch, measures[-1])
    seconds = time.perf_counter() - started
    return History(params, _joined(np.stack, measures), _joined(np.concatenate, logged), seconds)


def _joined(join: Callable[[tuple[np.ndarray, ...]], np.ndarray], trees: Sequence[T]) -> T:
    return jax.tree.map(lambda *each: join(each), *trees)
