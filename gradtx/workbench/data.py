"""The handwritten digits that scikit-learn ships, split and standardised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits as read_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from gradtx.workbench.training import Data

__all__ = ["TRAINING_IMAGES", "Split", "load_digits", "split_digits"]


TRAINING_IMAGES = 1437
"""The number of images that there are to train on."""


class Split(NamedTuple):
    """The images for training and those for testing, as indices into the data set; int64, ascending."""

    train: np.ndarray
    test: np.ndarray


def split_digits(labels: np.ndarray) -> Split:
    """A fifth of each digit for testing, the rest for training. Always the same, whatever the seed of a training."""
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Split(np.sort(train), np.sort(test))


def load_digits(samples: int | None = None) -> Data:
    """1,797 real images of 8 × 8 pixels, as rows of 64: 1,437 to train on and 360 to test on.

    Each pixel has mean 0 and variance 1 over the training images. The test images are moved and scaled by the same
    numbers, so nothing of them leaks into the training. Pixels that are constant over the training images are moved
    to 0 and not scaled.

    Args:
        samples: how many of the training images to keep: always the same ones, and more include fewer. None: all.

    Source: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI Machine Learning Repository.

    >>> data = load_digits()
    >>> data.train_images.shape, data.test_images.shape
    ((1437, 64), (360, 64))
    """
    pixels, labels = map(np.asarray, read_digits(return_X_y=True))
    train, test = split_digits(labels)
    if samples is not None:
        train = np.random.default_rng(0).permutation(train)[:samples]
    scaler = StandardScaler().fit(pixels[train])
    return Data(
        train_images=np.asarray(scaler.transform(pixels[train]), np.float32),
        train_labels=labels[train].astype(np.int32),
        test_images=np.asarray(scaler.transform(pixels[test]), np.float32),
        test_labels=labels[test].astype(np.int32),
    )
