"""``gradtx`` and ``python -m gradtx``: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gradtx.workbench.options import parse
from gradtx.workbench.settings import Impossible
from gradtx.workbench.terminal import say, show

__all__ = ["main"]

_DEMO = {"sklearn", "matplotlib", "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments, ``sys.argv[1:]`` if None.

    Returns:
        The exit status: 0; 1 if a result could not be written; 2 for a mistake in the arguments or a missing extra; 128
        and the number of a signal that ended it, such as 130 after Ctrl-C.
    """
    status = _run(argv)
    try:
        show("")  # what argparse printed, too
    except OSError:
        status = status or 1
    return status


def _run(argv: Sequence[str] | None) -> int:
    try:
        settings = parse(argv)
        from gradtx.workbench.compare import compare  # needs the extra

        return compare(settings)
    except SystemExit as stop:  # argparse, done
        return int(stop.code or 0)
    except Impossible as problem:
        return _refuse(str(problem))
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _DEMO:
            raise
        return _refuse(f'{package} is missing: pip install "gradtx[demo]"')
    except KeyboardInterrupt:
        return 130


def _refuse(reason: str) -> int:
    say(f"gradtx compare: {reason}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
