"""Sweeps as JSON has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradtx.workbench.record import plain
from gradtx.workbench.sweeps.sweep import Sweep

__all__ = ["sweeps_record"]


def sweeps_record(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Sweeps as JSON has them: what was found, and each training."""
    return {"sweeps": [_sweep(sweep) for sweep in sweeps]}


def _sweep(sweep: Sweep) -> dict[str, Any]:
    rows = []
    for row in sweep.table:
        losses = plain(row.pop(name) for name in list(row) if name.startswith("train_loss/"))
        rows.append({"train_loss": losses} | dict(zip(row, plain(row.values()), strict=True)) | {"seed": row["seed"]})
    trains = sweep.range
    return {
        "network": sweep.network,
        "optimizer": sweep.optimizer,
        "chain": sweep.chain,
        "seconds": round(sweep.seconds, 3),
        "best_learning_rate": float(sweep.rates[sweep.best]),
        "trains": None if trains is None else trains._asdict() | {"factor": trains.factor},
        "rows": rows,
    }
