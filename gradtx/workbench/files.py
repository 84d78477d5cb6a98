"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["check_writable", "write_whole"]


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.part")  # a name as long as names may be stays short enough


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside the one asked for, then rename it: others see the old content or the new, never a part.

    A symbolic link stays one, and what it points to is written.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    path = Path(os.path.realpath(path))
    part = _part(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a full disk may be noticed only after the name is taken
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out whether ``write_whole`` could write this file, and leave everything as it was.

    Raises:
        OSError: if not.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    part = _part(path)
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)
