"""The settings of a comparison, and whether it can be done with them."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import NamedTuple

from gradtx import Chain
from gradtx.workbench.files import check_writable
from gradtx.workbench.networks import ACTIVATIONS, Network
from gradtx.workbench.recipes import BATCH_SIZE, make_optimizer, recipe_of

__all__ = ["LARGEST_NETWORK", "LARGEST_SEED", "Impossible", "Settings", "Task"]

LARGEST_NETWORK = 10_000_000
"""Weights and biases that a network may have. The comparison is of small ones."""


LARGEST_SEED = 2**32 - 1
"""The parts of a key."""


class Impossible(ValueError):
    """Settings that cannot work; the message is for the user."""


class Task(NamedTuple):
    """One network to be trained with one optimizer: their names, and the images in a mini-batch."""

    network: str
    optimizer: str
    batch_size: int

    def __str__(self) -> str:
        size = "" if self.batch_size == BATCH_SIZE else f", batch size {self.batch_size}"
        return f"{recipe_of(self.optimizer).title} on {ACTIVATIONS[self.network].title}{size}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options of ``gradtx compare``.

    Attributes:
        optimizers: names for ``recipe_of``.
        networks: names in ``ACTIVATIONS``.
        depth: hidden layers.
        width: units in each, after the activation.
        gain: the hidden layers' weights start with variance gain / fan-in; None for each activation's own.
        samples: training images to use, the same ones each time; None for all.
        epochs: passes over the training images.
        batch_sizes: images in a mini-batch; with several, every training is done with each.
        learning_rate: of every optimizer and batch size, or None for what suits each.
        clip_norm, clip_layer, clip_value: limits of the gradient's norm, of the norms of its leaves (a layer's weights,
            a layer's biases), and of its elements, or None.
        weight_decay: what times the parameters is added to the gradient, or None.
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
    samples: int | None = None
    epochs: int = 20
    batch_sizes: tuple[int, ...] = (BATCH_SIZE,)
    learning_rate: float | None = None
    clip_norm: float | None = None
    clip_layer: float | None = None
    clip_value: float | None = None
    weight_decay: float | None = None
    health: bool = False
    sweep: bool = False
    seeds: int = 5
    seed: int = 0
    output: Path = Path("gradtx-compare.png")
    json: Path | None = None

    @property
    def tasks(self) -> list[Task]:
        """All trainings, or sweeps, in the order in which they are done."""
        return list(itertools.starmap(Task, itertools.product(self.networks, self.optimizers, self.batch_sizes)))

    @property
    def details(self) -> str:
        """The settings that all of a comparison share, in words: the second line of a heading."""
        sizes = " ".join(map(str, self.batch_sizes))
        clips = {"norm": self.clip_norm, "layer": self.clip_layer, "value": self.clip_value}
        return ", ".join(
            [
                f"{self.epochs} epoch{'s' * (self.epochs > 1)}",
                f"batch size {sizes}",
                *([] if self.samples is None else [f"{self.samples} training images"]),
                *(f"clip {name} {limit:g}" for name, limit in clips.items() if limit is not None),
                *([] if self.weight_decay is None else [f"weight decay {self.weight_decay:g}"]),
            ]
        )

    def optimizer(self, name: str, learning_rate: float, batch_size: int, images: int) -> Chain:
        """The optimizer of this name, behind the clips, for a training of ``epochs`` on so many images."""
        in_front = (self.clip_norm, self.clip_layer, self.clip_value, self.weight_decay)
        return make_optimizer(name, learning_rate, *in_front, steps=self.epochs * (images // batch_size))

    def rate(self, task: Task) -> float:
        """The learning rate that was asked for, or one that suits."""
        return self.learning_rate or recipe_of(task.optimizer).rate(task.batch_size)

    def title(self, name: str) -> str:
        """The title of a table or a picture of this network."""
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
            Impossible: for more samples than there are, a batch larger than the training set, networks too large,
                files that cannot be written, or a sweep with options that it has no use for.
        """
        if self.sweep and self.learning_rate is not None:
            raise Impossible("--sweep tries learning rates of its own: leave out --learning-rate, or --sweep")
        if self.sweep and self.health:
            raise Impossible("--sweep does not watch gradients: leave out --health, or --sweep")
        if self.sweep and self.seed + self.seeds - 1 > LARGEST_SEED:
            raise Impossible(f"--seed {self.seed} --seeds {self.seeds}: the last seed is more than {LARGEST_SEED}")
        if self.sweep and len(self.batch_sizes) > 1:
            raise Impossible(f"--sweep takes one batch size, found {' '.join(map(str, self.batch_sizes))}")
        if self.samples is not None and self.samples > images:
            raise Impossible(f"--samples {self.samples} is more than the {images} training images")
        if max(self.batch_sizes) > (self.samples or images):
            raise Impossible(
                f"--batch-size {max(self.batch_sizes)} is more than the {self.samples or images} training images"
            )
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
