"""A kind of comparison, as a value: what is done with each network and optimizer, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from gradtx.workbench.settings import Settings

__all__ = ["Keep", "Kind"]

Keep = Callable[[Any], None]
"""The function that takes what is done of a task, each time that there is more: a signal may end it at any time."""


class Kind(NamedTuple):
    """A kind of comparison.

    Attributes:
        name: what is done with one network and one optimizer, many of them.
        unit: the steps that each of those takes.
        steps: how many of them, by the settings.
        one: does one, and gives what there is of it to a ``Keep``.
        result: what came out, in a few words.
        report: prints all.
        record: all as it is written to the JSON file.
        draw: all as a picture.
    """

    name: str
    unit: str
    steps: Callable[[Settings], int]
    one: Callable[..., None]
    result: Callable[[Any], str]
    report: Callable[[Settings, Sequence[Any], Console], None]
    record: Callable[[Sequence[Any]], dict[str, Any]]
    draw: Callable[[Settings, Sequence[Any]], bytes]
