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

__all__ = [
    "Data",
    "Epoch",
    "History",
    "Measures",
    "Steps",
    "begin",
    "cross_entropy",
    "measure",
    "run_epoch",
    "shuffled_batches",
    "step_on",
    "train",
]

T = TypeVar("T")


class Data(NamedTuple):
    """Labelled images: float32 (n, inputs) each, and int32 (n,) class numbers."""

    train_images: ArrayLike
    train_labels: ArrayLike
    test_images: ArrayLike
    test_labels: ArrayLike

    @property
    def size(self) -> int:
        """The number of training images."""
        return np.shape(self.train_labels)[0]


class Measures(NamedTuple):
    """The measures at one moment of a training, or, with one axis more in front, after each epoch; float32.

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


class Steps(NamedTuple):
    """The measures of each mini-batch, before its step; float32, (steps, ...).

    Attributes:
        loss: mean cross-entropy over the images of the mini-batch.
        gradient_norms: per layer, the L2 norm of the gradient of that loss, before any clipping.
    """

    loss: Any
    gradient_norms: Any


class Epoch(NamedTuple):
    """The results of an epoch.

    Attributes:
        params: the parameters that the next epoch goes on with.
        state: of the optimizer.
        evaluated: the parameters that the optimizer wants evaluated: most often the same, or such as their average.
        steps: what was seen of each mini-batch.
        logged: what ``log`` made of the state after each step, stacked.
    """

    params: Params
    state: Any
    evaluated: Params
    steps: Steps
    logged: Any


class History(NamedTuple):
    """A finished training.

    Attributes:
        params: the trained parameters, or what the optimizer wants evaluated in their place, such as their average.
        measures: numpy arrays (epochs + 1, ...): of such parameters, before training, then after each epoch.
        steps: numpy arrays (steps, ...).
        logged: numpy arrays (steps, ...): what ``log`` gave in each step, as a tree like that.
        seconds: wall-clock time, compilation and measuring included.
    """

    params: Params
    measures: Measures
    steps: Steps
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
    return Measures(train_loss, train_accuracy, test_loss, test_accuracy, layer_norms(network, gradient))


def layer_norms(network: Network, gradient: Params) -> jax.Array:
    """The L2 norm of each layer's gradient: (layers,)."""
    return jnp.stack([optax.tree.norm(gradient[layer]) for layer in network.layers])


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
) -> Epoch:
    """One pass over the shuffled training images, compiled as a whole."""

    def one_batch(carry: tuple[Params, Any], rows: jax.Array) -> tuple[tuple[Params, Any], tuple[Steps, Any]]:
        params, state, seen = step_on(network, tx, data, *carry, rows)
        return (params, state), (seen, log(state))

    rows = shuffled_batches(key, data.size, batch_size)
    (params, state), (steps, logged) = jax.lax.scan(one_batch, (params, state), rows)
    return Epoch(params, state, gradtx.evaluation_point(state, params), steps, logged)


def step_on(
    network: Network, tx: optax.GradientTransformation, data: Data, params: Params, state: Any, rows: jax.Array
) -> tuple[Params, Any, Steps]:
    """One step on the training images of these numbers: new parameters, new state, and what was seen of the batch."""
    images, labels = jnp.asarray(data.train_images)[rows], jnp.asarray(data.train_labels)[rows]
    loss, gradient = jax.value_and_grad(lambda p: cross_entropy(network.apply(p, images), labels))(params)
    params, state = gradtx.step(tx, params, gradient, state, value=loss)
    return params, state, Steps(loss, layer_norms(network, gradient))


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
    evaluated, measures, seen = params, [jax.device_get(measure(network, params, data))], []
    for number in range(1, epochs + 1):
        key = jax.random.fold_in(shuffle_key, number)
        params, state, evaluated, *of_steps = run_epoch(network, tx, batch_size, params, state, data, key, log)
        measures.append(jax.device_get(measure(network, evaluated, data)))
        seen.append(jax.device_get(of_steps))
        if progress is not None:
            progress(number, measures[-1])
    steps, logged = _joined(np.concatenate, seen)
    return History(evaluated, _joined(np.stack, measures), steps, logged, time.perf_counter() - started)


def _joined(join: Callable[[tuple[np.ndarray, ...]], np.ndarray], trees: Sequence[T]) -> T:
    return jax.tree.map(lambda *each: join(each), *trees)
