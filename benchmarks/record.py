"""A run as JSON: where, when, with what, and every sample."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.data import CORES, available_memory
from benchmarks.timing import Summary, ratio, summary

__all__ = ["Result", "surroundings", "to_json"]

PACKAGES = ("gradtx", "jax", "jaxlib", "numpy", "optax", "torch")


class Result(NamedTuple):
    """The samples of a workload.

    Attributes:
        about: the workload, in a line.
        unit: of the samples.
        samples: by contestant, in the order of the rounds.
        details: by contestant: what else is known of it, in seconds or bytes.
    """

    about: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    details: Mapping[str, Mapping[str, float]]

    def summaries(self) -> dict[str, Summary]:
        """Median and quartiles of each contestant."""
        return {name: summary(samples) for name, samples in self.samples.items()}

    def ratios(self, name: str) -> dict[str, Summary]:
        """How many times every other contestant's samples this one's are."""
        mine = self.samples[name]
        return {other: ratio(mine, theirs) for other, theirs in self.samples.items() if other != name}

    @property
    def ours(self) -> list[str]:
        """The contestants that are gradtx."""
        return [name for name in self.samples if name.startswith("gradtx")]


def surroundings(arguments: Sequence[str]) -> dict[str, Any]:
    """The machine, its load by others, the versions, the command and the commit, as they are before a run."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": CORES,
            "available_memory_bytes": available_memory(),
            "load_before": load,
            "system": platform.platform(),
            "backend": jax.default_backend(),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def to_json(where: Mapping[str, Any], results: Mapping[str, Result], sweeps: Mapping[str, Mapping[int, Result]]) -> str:
    """A JSON object. Times are in seconds."""
    content = {
        **where,
        "workloads": {name: _plain(result) for name, result in results.items()},
        "sweeps": {
            name: [{"at": at, **_plain(result)} for at, result in points.items()] for name, points in sweeps.items()
        },
    }
    return json.dumps(content, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _plain(result: Result) -> dict[str, Any]:
    contestants = {
        name: {**found._asdict(), "samples": list(result.samples[name]), **result.details.get(name, {})}
        for name, found in result.summaries().items()
    }
    ratios = {name: {other: found._asdict() for other, found in result.ratios(name).items()} for name in result.ours}
    return {"about": result.about, "unit": result.unit, "contestants": contestants, "ratios": ratios}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that runs, with a plus if files differ from it; None outside of a clone."""
    here = Path(__file__).parent
    try:
        run = [
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + "+" * bool(run[1])
