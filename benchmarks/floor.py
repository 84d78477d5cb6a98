"""The floor in C: compiled when it is first needed, with the system's compiler."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.data import CORES, Data

__all__ = ["Floor", "why_missing"]

FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]


class _Work(ctypes.Structure):
    _fields_ = [
        ("leaves", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in "pmvg"),
        *((name, ctypes.c_float) for name in ("rate", "b1", "b2", "eps", "w1", "w2")),
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
    library.step.restype = None
    library.step.argtypes = [ctypes.POINTER(_Work), ctypes.c_int64]
    return library


def why_missing() -> str | None:
    """Why the floor cannot be measured here; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


class Floor:
    """Adam as one loop over p, m, v and g."""

    def __init__(
        self,
        data: Data,
        learning_rate: float,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        threads: int = CORES,
    ):
        library = _library()
        assert not isinstance(library, str), library
        self._step, self._data, self._count = library.step, data, 0
        self._p = [x.copy() for x in data.start]
        self._m, self._v = ([np.zeros_like(x) for x in self._p] for _ in range(2))
        self._sizes = np.array([x.size for x in self._p], np.int64)
        self._pointers = {name: _pointers(xs) for name, xs in (("p", self._p), ("m", self._m), ("v", self._v))}
        self._threads = threads
        self._rates = (learning_rate, b1, b2, eps)
        self.use(0)

    def use(self, which: int) -> None:
        """Take one of the gradients from now on."""
        self._g = [np.asarray(g) for g in self._data.gradients[which].values()]
        self._pointers["g"] = _pointers(self._g)

    def step(self) -> None:
        """One step."""
        self._count += 1
        rate, b1, b2, eps = self._rates
        work = _Work(
            len(self._p),
            self._sizes.ctypes.data,
            *(ctypes.addressof(self._pointers[name]) for name in "pmvg"),
            *(rate, b1, b2, eps, 1 - b1**self._count, 1 - b2**self._count),
        )
        self._step(work, self._threads)

    def leaf(self, i: int) -> np.ndarray:
        """A leaf of the parameters as they are now."""
        return self._p[i]


def _pointers(xs: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(xs))(*(x.ctypes.data for x in xs))
