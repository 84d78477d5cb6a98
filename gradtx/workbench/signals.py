"""Signals that end a program: what is finished by then is to be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Ending", "ending", "status"]

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ending:
    """Signals as they come in.

    Attributes:
        signal: the number of the first one, None so far.
        held: whether they are only noted, and no longer raised.
    """

    def __init__(self):
        self.signal: int | None = None
        self.held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is None:
            self.signal = number
            if not self.held:
                raise KeyboardInterrupt

    def check(self) -> None:
        """Raise for a signal that came in, if its own exception is gone: not all that Python runs lets one through.

        Raises:
            KeyboardInterrupt: whichever signal it was.
        """
        if self.signal is not None and not self.held:
            self.held = True
            raise KeyboardInterrupt

    def hold(self) -> None:
        """From now on only note signals: while files are written."""
        self.held = True


@contextmanager
def ending() -> Iterator[Ending]:
    """INT, TERM and HUP raise KeyboardInterrupt. A signal that is ignored, as HUP is under nohup, stays so."""
    signals = Ending()
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other can handle signals
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) in usual}
    for number in before:
        signal.signal(number, signals)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(number: int) -> int:
    """The exit status of a program that a signal ended, as shells have it."""
    return 128 + number
