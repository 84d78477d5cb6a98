"""Fully connected networks: layers of affine maps with an activation between them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradtx import maxout, relu

__all__ = ["ACTIVATIONS", "Activation", "Network", "Params"]

Params = dict[str, dict[str, jax.Array]]
"""``{"layer_1": {"w": (inputs, outputs), "b": (outputs,)}, "layer_2": ...}``, float32; layers count from 1."""


class Activation(NamedTuple):
    """A hidden layer's activation.

    Attributes:
        title: its name in tables and pictures.
        function: (..., width · group_size) to (..., width).
        group_size: how many affine functions one unit takes.
        gain: the weights start with variance gain / fan-in. With He's gain, 1 / E[f(z)²] for z normal, the mean square
            of a layer's output is that of its input, if f(az) = a·f(z) for a > 0; for others 1 is usual. Another gain
            shows gradients that vanish or explode.
    """

    title: str
    function: Callable[[jax.Array], jax.Array]
    group_size: int = 1
    gain: float = 1.0


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("ReLU", relu, gain=2.0),
    "maxout": Activation("maxout", functools.partial(maxout, group_size=2), group_size=2, gain=1.0),
    "sigmoid": Activation("sigmoid", jax.nn.sigmoid, gain=1.0),
}
"""The activations known by name. The greater of two normal numbers has mean square 1, so maxout's gain is 1.

The slope of the sigmoid is at most 1/4, so its gradients shrink by that much or more in each layer: it is here to show
how they vanish.
"""


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier: ``depth`` hidden layers of ``width`` units, then one affine layer, whose outputs are logits.

    A value: equal networks are equal, and one can be a static argument of ``jax.jit``.

    Attributes:
        activation: of the hidden layers.
        depth: number of hidden layers, at least 0.
        width: units of a hidden layer, after the activation. A maxout unit has twice the weights of a ReLU.
        inputs: numbers in an image.
        classes: number of logits.

    >>> network = Network(ACTIVATIONS["maxout"], depth=1, width=5, inputs=64, classes=10)
    >>> network.shapes
    ((64, 10), (5, 10))
    """

    activation: Activation
    depth: int
    width: int
    inputs: int
    classes: int

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each layer's weights, from the first layer to the last."""
        hidden = self.width * self.activation.group_size
        fan_in = [self.inputs, *[self.width] * self.depth]
        return tuple(zip(fan_in, [*[hidden] * self.depth, self.classes], strict=True))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, from the first to the last: ``("layer_1", "layer_2", ...)``."""
        return tuple(f"layer_{number}" for number in range(1, self.depth + 2))

    @property
    def size(self) -> int:
        """The number of weights and biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.shapes)

    def init(self, key: jax.Array) -> Params:
        """He's initialisation: normal weights of variance gain / fan-in (1 / fan-in in the last layer), biases 0.

        Source: He et al. (2015), "Delving deep into rectifiers".
        """
        gains = [*[self.activation.gain] * self.depth, 1.0]
        keys = jax.random.split(key, self.depth + 1)
        return {
            layer: {
                "w": jax.nn.initializers.variance_scaling(gain, "fan_in", "normal")(layer_key, shape, jnp.float32),
                "b": jnp.zeros(shape[1]),
            }
            for layer, gain, layer_key, shape in zip(self.layers, gains, keys, self.shapes, strict=True)
        }

    def apply(self, params: Params, images: jax.Array) -> jax.Array:
        """Logits of images: (..., inputs) to (..., classes)."""
        *hidden, last = (params[layer] for layer in self.layers)
        x = images
        for layer in hidden:
            x = self.activation.function(_affine(layer, x))
        return _affine(last, x)


def _affine(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    product = x @ layer["w"]
    return product + jnp.broadcast_to(layer["b"], product.shape)
