"""A kind of comparison, as a value: what is done with each network and optimizer, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from gradtx.workbench.settings import Settings

__all__ = ["Kind"]


class Kind(NamedTuple):
    """A kind of comparison.

    Attributes:
        name: what is done with one network and one optimizer, many of them.
        unit: the steps that each of those takes.
        steps: how many of them, by the settings.
        one: does one.
        result: what came out, in a few words.
        report: prints all.
        record: all as it is written to the JSON file.
        draw: all as a picture.
    """

    name: str
    unit: str
    steps: Callable[[Settings], int]
    one: Callable[..., Any]
    result: Callable[[Any], str]
    report: Callable[[Settings, Sequence[Any], Console], None]
    record: Callable[[Sequence[Any]], dict[str, Any]]
    draw: Callable[[Settings, Sequence[Any]], bytes]
