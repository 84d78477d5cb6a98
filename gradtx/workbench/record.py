"""A comparison as JSON: every setting, every version, every number."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from gradtx import Finding
from gradtx.workbench.health import Health
from gradtx.workbench.runs import Run
from gradtx.workbench.settings import Settings
from gradtx.workbench.sweeps import Sweep

__all__ = ["runs_record", "sweeps_record", "to_json"]

_PACKAGES = ("gradtx", "jax", "jaxlib", "numpy", "optax", "scikit-learn")


def to_json(settings: Settings, record: dict[str, Any], *, interrupted: bool) -> bytes:
    """The comparison as a JSON object in UTF-8. Numbers that JSON has no word for (NaN, infinities) are null.

    Losses are in nats, accuracies from 0 to 1, times in seconds. The first number of a list is from before training,
    each further one from after an epoch.

    Args:
        settings: of the comparison.
        record: what came out, of ``runs_record`` or ``sweeps_record``.
        interrupted: whether something is missing.
    """
    content = {
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES},
        "backend": jax.default_backend(),
        "interrupted": interrupted,
    } | record
    text = json.dumps(content, default=str, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    return text.encode(errors="backslashreplace")  # half a surrogate, of a file name that is no text, as \udc80


def runs_record(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs as JSON has them."""
    return {"runs": [_run(run) for run in runs]}


def sweeps_record(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """Sweeps as JSON has them: what was found, and each training."""
    return {"sweeps": [_sweep(sweep) for sweep in sweeps]}


def _run(run: Run) -> dict[str, Any]:
    numbers = run.measures._asdict()
    norms = numbers.pop("gradient_norms")
    return {
        "network": run.network,
        "optimizer": run.optimizer,
        "learning_rate": run.learning_rate,
        "chain": run.chain,
        "seconds": round(run.seconds, 3),
        "verdict": run.verdict,
        "final": {name: _plain(values)[-1] for name, values in numbers.items()},
        "epochs": {name: _plain(values) for name, values in numbers.items()},
        "gradient_norms": {f"layer_{i}": _plain(norm) for i, norm in enumerate(norms.T)},
        "health": None if run.health is None else _health(run.health),
    }


def _sweep(sweep: Sweep) -> dict[str, Any]:
    rows = []
    for row in sweep.table:
        losses = _plain(row.pop(name) for name in list(row) if name.startswith("train_loss/"))
        rows.append({"train_loss": losses} | dict(zip(row, _plain(row.values()), strict=True)) | {"seed": row["seed"]})
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


def _health(health: Health) -> dict[str, Any]:
    return {
        moment: {
            "metrics": dict(zip(seen, _plain(seen.values()), strict=True)),
            "diagnosis": [_finding(finding) for finding in diagnosis],
        }
        for (moment, seen), diagnosis in zip(health._asdict().items(), health.diagnoses(), strict=True)
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return finding._asdict() | {"values": _plain(finding.values)}


def _plain(values: Iterable[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
