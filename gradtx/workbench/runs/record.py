"""Runs as JSON has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradtx import Finding
from gradtx.workbench.record import plain
from gradtx.workbench.runs.health import Health
from gradtx.workbench.runs.run import FIRST_STEPS, Run

__all__ = ["runs_record"]


def runs_record(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs as JSON has them."""
    return {"runs": [_run(run) for run in runs]}


def _run(run: Run) -> dict[str, Any]:
    numbers = run.measures._asdict()
    norms = numbers.pop("gradient_norms")
    return {
        "network": run.network,
        "optimizer": run.optimizer,
        "batch_size": run.batch_size,
        "learning_rate": run.learning_rate,
        "chain": run.chain,
        "seconds": round(run.seconds, 3),
        "verdict": run.verdict,
        "final": {name: plain(values)[-1] for name, values in numbers.items()},
        "epochs": {name: plain(values) for name, values in numbers.items()},
        "gradient_norms": _by_layer(norms),
        "first_steps": {
            "loss": plain(run.steps.loss[:FIRST_STEPS]),
            "gradient_norms": _by_layer(run.steps.gradient_norms[:FIRST_STEPS]),
        },
        "descent": None if run.descent is None else plain(run.descent),
        "health": None if run.health is None else _health(run.health),
    }


def _by_layer(norms: np.ndarray) -> dict[str, list[float | None]]:
    """Norms (moments, layers) by the names of the layers."""
    return {f"layer_{number}": plain(norm) for number, norm in enumerate(norms.T, start=1)}


def _health(health: Health) -> dict[str, Any]:
    return {
        moment: {
            "metrics": dict(zip(seen, plain(seen.values()), strict=True)),
            "diagnosis": [_finding(finding) for finding in diagnosis],
        }
        for (moment, seen), diagnosis in zip(health._asdict().items(), health.diagnoses(), strict=True)
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return finding._asdict() | {"values": plain(finding.values)}
