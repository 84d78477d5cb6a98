"""The floor in C: compiled when it is first needed, with the system's compiler."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.data import CORES, Data

__all__ = ["Floor", "Kind", "why_missing"]

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]


Kind = Literal["adam", "measured", "accumulated", "bfloat16"]
"""Adam alone; after a reading of all gradients, if they are finite; of the mean of some; with moments in bfloat16."""

_ADAM, _MEASURED, _ADDED, _SUMMED, _IN_BFLOAT16 = range(5)


class _Work(ctypes.Structure):
    _fields_ = [
        ("leaves", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in "pamvg"),
        *((name, ctypes.c_float) for name in ("rate", "b1", "b2", "eps", "w1", "w2", "over_steps")),
        ("kind", ctypes.c_int32),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled floor; or why there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "there is no C compiler"
    source = Path(__file__).with_name("floor.c")
    with tempfile.TemporaryDirectory(prefix="gradtx-floor-") as folder:
        target = Path(folder) / "floor.so"
        run = subprocess.run([compiler, *FLAGS, str(source), "-o", str(target), "-lm"], capture_output=True, text=True)
        if run.returncode:
            return f"{compiler} refuses floor.c: {run.stderr.strip()}"
        library = ctypes.CDLL(str(target))
    library.step.restype = ctypes.c_int32
    library.step.argtypes = [ctypes.POINTER(_Work), ctypes.c_int64]
    return library


def why_missing() -> str | None:
    """Why the floor cannot be measured here; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


class Floor:
    """Adam as one loop over p, m, v and g.

    Args:
        data: what is trained.
        learning_rate, b1, b2, eps: Adam's.
        threads: how many take a share.
        kind: what is done besides.
        every: how many gradients Adam gets the mean of, if it is "accumulated".
    """

    def __init__(
        self,
        data: Data,
        learning_rate: float,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        threads: int = CORES,
        kind: Kind = "adam",
        every: int = 1,
    ):
        library = _library()
        assert not isinstance(library, str), library
        self._step, self._data, self._taken = library.step, data, 0
        self._kind, self._every, self.details = kind, every, dict[str, float]()
        self._p = [x.copy() for x in data.start]
        moment = np.uint16 if kind == "bfloat16" else np.float32
        self._m, self._v = ([np.zeros(x.shape, moment) for x in self._p] for _ in range(2))
        self._a = [np.zeros_like(x) for x in self._p] if kind == "accumulated" else []
        self._sizes = np.array([x.size for x in self._p], np.int64)
        self._pointers = {
            name: _pointers(xs) for name, xs in {"p": self._p, "a": self._a, "m": self._m, "v": self._v}.items()
        }
        self._threads = threads
        self._rates = (learning_rate, b1, b2, eps)
        self.use(0)

    def use(self, which: int) -> None:
        """Take one of the gradients from now on."""
        self._g = [np.asarray(g) for g in self._data.gradients[which].values()]
        self._pointers["g"] = _pointers(self._g)

    def step(self) -> None:
        """One step."""
        count, rest = divmod(self._taken + 1, self._every)
        kinds = {
            "adam": _ADAM,
            "measured": _MEASURED,
            "accumulated": _ADDED if rest else _SUMMED,
            "bfloat16": _IN_BFLOAT16,
        }
        rate, b1, b2, eps = self._rates
        work = _Work(
            len(self._p),
            self._sizes.ctypes.data,
            *(ctypes.addressof(self._pointers[name]) for name in "pamvg"),
            *(rate, b1, b2, eps, 1 - b1 ** max(count, 1), 1 - b2 ** max(count, 1), 1 / self._every),
            kinds[self._kind],
        )
        self._taken += self._step(work, self._threads)

    def leaf(self, i: int) -> np.ndarray:
        """A leaf of the parameters as they are now."""
        return self._p[i]


def _pointers(xs: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(xs))(*(x.ctypes.data for x in xs))
