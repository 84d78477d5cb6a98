"""The list ``__all__`` of a package that shows what it imports."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def exports(namespace: dict[str, Any]) -> list[str]:
    """The public names of a package: all but modules, those with an underscore in front, and mypy's switch."""
    hidden = {name for name, value in namespace.items() if name.startswith("_") or isinstance(value, ModuleType)}
    return [name for name in namespace if name not in hidden | {"MYPY"}]
