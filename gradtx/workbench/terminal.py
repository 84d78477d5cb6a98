"""The terminal. It may be closed, full or hung up, and a comparison goes on all the same."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

__all__ = ["Lenient", "Page", "drop", "say", "show"]


class Lenient:
    """A stream whose reader may go: all that cannot be written is left out.

    Args:
        stream: where the text goes; None for a stream that was closed from the start.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):  # a ValueError for a stream that Python has closed
            drop(self._stream)
        return len(text)

    def flush(self) -> None:
        """``write`` has done it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Page(Lenient):
    """Text that is put together as for a stream, colours and frames as that takes them, and not written yet.

    Attributes:
        text: of the page so far.
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.text = ""

    def write(self, text: str) -> int:
        """More text."""
        self.text += text
        return len(text)


def say(text: str) -> None:
    """A line on stderr."""
    Lenient(sys.stderr).write(text + "\n")


def show(text: str) -> None:
    """Text on stdout, now; what its encoding lacks becomes a question mark.

    Raises:
        OSError: if it cannot be written; BrokenPipeError if nobody reads it.
    """
    if sys.stdout is None:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError:
        drop(sys.stdout)
        raise


def drop(stream: Any) -> None:
    """Send the rest of a stream nowhere, so that Python does not fail again as it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
