"""Notebooks as Markdown, from their stored outputs; nothing is run."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["to_markdown"]


def to_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name.

    Raises:
        ValueError: if it has no heading to be called by, or a code cell that was not run.
    """
    cells = json.loads(path.read_text())["cells"]
    if not cells or not _text(cells[0]["source"]).startswith("# "):
        raise ValueError(f"{path.name} does not begin with a heading")
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in cells:
        source = _text(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        if cell["execution_count"] is None:
            raise ValueError(f"{path.name} is stored without outputs: run it, then save it")
        parts.append(_fenced(source, "python"))
        for output in cell["outputs"]:
            parts.extend(_output(output, f"{path.stem}-{len(pictures) + 1}.png", pictures))
    return "\n\n".join(parts), pictures


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """The richest form of an output that Markdown can show."""
    data: dict[str, Any] = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        pictures[name] = base64.b64decode(_text(data["image/png"]))
        yield f"![What the cell above draws]({name})"
    elif "text/markdown" in data:
        yield _text(data["text/markdown"])
    elif text := _text(data.get("text/plain", "")):
        yield _fenced(text, "text")


def _text(lines: str | list[str]) -> str:
    return "".join(lines)


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
