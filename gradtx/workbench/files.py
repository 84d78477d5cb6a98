"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["check_writable", "write_whole"]


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside the one asked for, then rename it: others see the old content or the new, never a part.

    A symbolic link stays one, and what it points to is written.

    Raises:
        OSError: if it cannot be written; nothing is left behind then.
    """
    path = Path(os.path.realpath(path))
    part = _part(path)
    try:
        part.write_bytes(content)
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
    part = _part(path)
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)
