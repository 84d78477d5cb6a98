"""Thumbnails of the notebooks: of each the first picture that is stored in it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image

__all__ = ["NOTEBOOKS", "thumbnail"]

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

SIZE = (560, 360)
"""Pixels that a thumbnail has at most; it is shown half as large."""


def thumbnail(notebook: Path) -> bytes:
    """The first picture that a notebook stores, made small: a PNG.

    Raises:
        ValueError: for a notebook that has none.
    """
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if stored := output.get("data", {}).get("image/png"):
                image = Image.open(io.BytesIO(base64.b64decode(stored)))
                image.thumbnail(SIZE, Image.Resampling.LANCZOS)
                small = io.BytesIO()
                image.save(small, format="png", optimize=True)
                return small.getvalue()
    raise ValueError(f"{notebook.name} has no picture to show in the gallery of notebooks")
