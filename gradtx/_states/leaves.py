"""One leaf of a slot carried from one state to another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradtx._core.codecs import decoded, is_encoded, stored_as
from gradtx._core.numerics import is_complex, is_inexact
from gradtx._states.report import MigrationReport, empty_report, extend


def carried_leaf(old: Any, new: Any, at: str, report: MigrationReport, keep_rows: bool) -> Any:
    """The old array if it fits, in the dtype of the new one; else the new one. The report says which, and why."""
    if is_encoded(old) or is_encoded(new):
        return _carried_codes(old, new, at, report, keep_rows)
    old, new = (x if isinstance(x, jax.Array) else jnp.asarray(x) for x in (old, new))
    castable = all(is_inexact(x.dtype) for x in (old, new)) and is_complex(old.dtype) == is_complex(new.dtype)
    rows = min(old.shape[0], new.shape[0]) if old.ndim and new.ndim and old.shape[1:] == new.shape[1:] else 0
    if keep_rows and old.shape != new.shape and castable and rows:
        report.kept[at] = f"{rows} rows of {old.shape[0]}, and {new.shape[0] - rows} fresh"
        return new.at[:rows].set(old[:rows].astype(new.dtype))
    if old.shape != new.shape:
        report.fresh[at] = f"shape {old.shape} in the old state, {new.shape} here"
    elif old.dtype != new.dtype and not castable:
        report.fresh[at] = f"{old.dtype} in the old state, {new.dtype} here"
    else:
        report.kept[at] = "" if old.dtype == new.dtype else f"{old.dtype} as {new.dtype}"
        return old if old.dtype == new.dtype else old.astype(new.dtype)
    return new


def _carried_codes(old: Any, new: Any, at: str, report: MigrationReport, keep_rows: bool) -> Any:
    """A slot from one format to another: the numbers, rounded to nearest where the format is another."""
    formats = [str(x.codec).strip("'") if is_encoded(x) else str(jnp.asarray(x).dtype) for x in (old, new)]
    if formats[0] == formats[1] and old.shape == new.shape and old.codes.dtype == new.codes.dtype:
        report.kept[at] = ""
        return old
    noted = empty_report()
    carried = carried_leaf(decoded(old), decoded(new), at, noted, keep_rows)
    extend(report, noted)
    if at not in noted.kept:
        return new
    rows = noted.kept[at] if old.shape != new.shape else ""
    change = "" if formats[0] == formats[1] else f"{formats[0]} as {formats[1]}"
    report.kept[at] = ", ".join(filter(None, [rows, change]))
    return stored_as(carried, new)
