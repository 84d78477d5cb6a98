"""Assertions on trees that say which leaf is wrong, and how."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gradtx._core.numerics import is_complex
from gradtx._core.selectors import path_of


def check(holds: bool, message: str) -> None:
    """An assertion that stays one under ``python -O``."""
    if not holds:
        raise AssertionError(message)


def same_types(found: Any, expected: Any, what: str) -> None:
    """The same structure, shapes, dtypes and weak types."""
    ours, theirs = _types(found), _types(expected)
    wrong = [path for path in {**theirs, **ours} if ours.get(path) != theirs.get(path)]
    words = [f"{path or 'it'} is {ours.get(path, 'missing')}, not {theirs.get(path, 'there')}" for path in wrong[:4]]
    check(not wrong, f"{what}: {'; '.join(words)}{' and more' if len(wrong) > 4 else ''}")
    check(jax.tree.structure(found) == jax.tree.structure(expected), f"{what}: other containers: {found}")


def _types(tree: Any) -> dict[str, str]:
    return {path: f"{'weak ' if x.weak_type else ''}{x.dtype}{list(x.shape)}" for path, x in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_of(path): leaf for path, leaf in leaves}


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x, np.complex128 if is_complex(x.dtype) else np.float64)


def close(found: Any, expected: Any, what: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    """The same numbers within atol + rtol·|expected|; to the last bit by default."""
    check(jax.tree.structure(found) == jax.tree.structure(expected), f"{what}: the structures differ")
    for (path, x), y in zip(_leaves(found).items(), jax.tree.leaves(expected), strict=True):
        x, y = _wide(x), _wide(y)
        if x.shape != y.shape or not np.isclose(x, y, rtol, atol, equal_nan=True).all():
            raise AssertionError(f"{what}: {path or 'it'} is {_short(x)}, not {_short(y)}")


def finite(tree: Any, what: str) -> None:
    """No inf and no NaN."""
    for path, x in _leaves(tree).items():
        check(bool(np.isfinite(_wide(x)).all()), f"{what}: {path or 'it'} is {_short(_wide(x))}")


def own_buffers(tree: Any, what: str) -> None:
    """No two arrays in the same memory, as what is to be donated must have it."""
    seen: dict[int, str] = {}
    for path, x in _leaves(tree).items():
        if x.nbytes:
            first = seen.setdefault(x.addressable_shards[0].data.unsafe_buffer_pointer(), path)
            check(first == path, f"{what}: {path} is the memory of {first}; copy it: jnp.copy(...)")


def _short(x: np.ndarray) -> str:
    return np.array2string(x, threshold=6, edgeitems=2, precision=8).replace("\n", "")
