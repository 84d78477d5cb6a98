"""A comparison as JSON: every setting, every version, every number."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from gradtx.workbench.settings import Settings

__all__ = ["plain", "to_json"]

_PACKAGES = ("gradtx", "jax", "jaxlib", "numpy", "optax", "scikit-learn")


def to_json(settings: Settings, record: dict[str, Any], *, interrupted: bool) -> bytes:
    """The comparison as a JSON object in UTF-8. Numbers that JSON has no word for (NaN, infinities) are null.

    Losses are in nats, accuracies from 0 to 1, times in seconds. The first number of a list is from before training,
    each further one from after an epoch.

    Args:
        settings: of the comparison.
        record: what came out, one of the kinds' records.
        interrupted: whether something is missing.
    """
    content = {
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
        "interrupted": interrupted,
    } | record
    text = json.dumps(content, default=str, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    return text.encode(errors="backslashreplace")  # half a surrogate, of a file name that is no text, as \udc80


def plain(values: Iterable[Any]) -> list[float | None]:
    """Numbers as JSON has them: None for those that it has no word for."""
    return [float(value) if np.isfinite(value) else None for value in values]
