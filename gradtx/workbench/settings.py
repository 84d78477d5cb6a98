"""What a comparison is asked to do, and whether it can be done."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from gradtx.workbench.files import check_writable
from gradtx.workbench.networks import ACTIVATIONS, Network

__all__ = ["LARGEST_NETWORK", "LARGEST_SEED", "Impossible", "Settings"]

LARGEST_NETWORK = 10_000_000
"""Weights and biases that a network may have. The comparison is of small ones."""


LARGEST_SEED = 2**32 - 1
"""What a key is made of."""


class Impossible(ValueError):
    """Settings that cannot work; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of ``gradtx compare``.

    Attributes:
        optimizers: names in ``RECIPES``.
        networks: names in ``ACTIVATIONS``.
        depth: hidden layers.
        width: units in each, after the activation.
        gain: the hidden layers' weights start with variance gain / fan-in; None for each activation's own.
        epochs: passes over the training images.
        batch_size: images in a mini-batch.
        learning_rate: of every optimizer, or None for each one's own.
        clip_norm, clip_layer, clip_value: limits of the gradient's norm, of the norms of its leaves (a layer's weights,
            a layer's biases), and of its elements, or None.
        health: whether to watch the gradients of every training, and not only of those that went wrong.
        sweep: whether to try many learning rates and seeds with every optimizer.
        seeds: how many seeds, if so: ``seed``, the next one, and so on.
        seed: of initial weights and shuffling.
        output: where the picture goes.
        json: where the numbers go, or None.
    """

    optimizers: tuple[str, ...]
    networks: tuple[str, ...]
    depth: int = 3
    width: int = 64
    gain: float | None = None
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float | None = None
    clip_norm: float | None = None
    clip_layer: float | None = None
    clip_value: float | None = None
    health: bool = False
    sweep: bool = False
    seeds: int = 5
    seed: int = 0
    output: Path = Path("gradtx-compare.png")
    json: Path | None = None

    def title(self, name: str) -> str:
        """What a table or a picture of this network is called."""
        gain = "" if self.gain is None else f", gain {self.gain:g}"
        layers = f"{self.depth} hidden layer{'s' * (self.depth > 1)} of {self.width}"
        return f"{ACTIVATIONS[name].title} network, {layers}{gain}"

    def network(self, name: str, inputs: int, classes: int) -> Network:
        """The network of this name in this size."""
        activation = ACTIVATIONS[name]
        if self.gain is not None:
            activation = activation._replace(gain=self.gain)
        return Network(activation, self.depth, self.width, inputs, classes)

    def check(self, images: int, networks: list[Network]) -> None:
        """Refuse what would fail only after training, or at its start.

        Raises:
            Impossible: for a batch larger than the training set, networks too large, files that cannot be written, or
                a sweep with options that it has no use for.
        """
        if self.sweep and self.learning_rate is not None:
            raise Impossible("--sweep tries learning rates of its own: leave out --learning-rate, or --sweep")
        if self.sweep and self.health:
            raise Impossible("--sweep does not watch gradients: leave out --health, or --sweep")
        if self.sweep and self.seed + self.seeds - 1 > LARGEST_SEED:
            raise Impossible(f"--seed {self.seed} --seeds {self.seeds}: the last seed is more than {LARGEST_SEED}")
        if self.batch_size > images:
            raise Impossible(f"--batch-size {self.batch_size} is more than the {images} training images")
        size = max(network.size for network in networks)
        if size > LARGEST_NETWORK:
            raise Impossible(
                f"--depth {self.depth} --width {self.width} make a network of {size:,} weights, more than the"
                f" {LARGEST_NETWORK:,} of this comparison"
            )
        if self.output.suffix.lower() != ".png":
            raise Impossible(f"--output {self.output}: the picture is a PNG, so the name must end in .png")
        files = {"--output": self.output} if self.json is None else {"--output": self.output, "--json": self.json}
        for option, path in files.items():
            _check_file(option, path)
        if len(set(map(os.path.realpath, files.values()))) < len(files):
            raise Impossible(f"--output and --json are the same file, {self.output}")


def _check_file(option: str, path: Path) -> None:
    try:
        check_writable(path)
    except OSError as error:
        raise Impossible(f"{option} {path} cannot be written: {error.strerror or error}") from error
    except ValueError as error:  # a null character
        raise Impossible(f"{option} {str(path)!r} cannot be written: {error}") from error
