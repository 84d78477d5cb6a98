"""The compiled kernel: where it is, what instructions it has, or why there is none."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import jax

FORMAT = 9
"""The format of programs and calls, as in kernel.cc: changes with instructions, their meaning, and operands' order."""

# A compiled module may be kept on disk and run by a later version of the kernel.
TARGET = f"gradtx_native_map_{FORMAT}"

REBUILD = "build it anew: pip install -e . in a checkout, else pip install --force-reinstall gradtx"


@dataclass(frozen=True)
class Op:
    """An instruction of the kernel: its number, and for which sets of scalar operands (bits) it has a variant."""

    code: int
    arity: int
    variants: frozenset[int]


@dataclass(frozen=True)
class Availability:
    """The compiled kernel, or its absence: true or false; as a string it says which, or why not.

    Attributes:
        reason: why the kernel is not there, or None if it is.
        target: the generation of processors whose instructions it uses here.
        path: the file.
        ops: its instructions by name.
    """

    reason: str | None = None
    target: str = ""
    path: str = ""
    ops: dict[str, Op] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return f"native kernel for {self.target} ({self.path})" if self else f"no native kernel: {self.reason}"

    __repr__ = __str__


def _interface_of_jaxlib() -> tuple[int, int]:
    """The version of XLA's foreign function interface that the installed jaxlib has; it accepts older ones."""
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    major, minor = (re.search(rf"define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    if major is None or minor is None:
        raise ValueError("jaxlib's headers name no version of the interface")
    return int(major[1]), int(minor[1])


def _is_whole(path: Path) -> bool:
    """True if an ELF file is as long as it says. To map a shorter one kills the process."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":  # of 64 bits, the least significant first; the loader judges others
            return True
        if len(header) < 64:
            return False
        segments, sections = struct.unpack_from("<2Q", header, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from("<4H", header, 54)
        if max(segments + segment_size * segment_count, sections + section_size * section_count) > size:
            return False
        file.seek(segments)
        table = file.read(segment_size * segment_count)
    ends = (sum(struct.unpack_from("<Q16xQ", table, i * segment_size + 8)) for i in range(segment_count))
    return all(end <= size for end in ends)


@functools.cache
def load() -> Availability:
    """Load the kernel and register it with XLA, once per process."""
    here = Path(__file__).parent
    paths = [here / f"_kernel{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return Availability("not built: there was no C++ compiler, or no headers of jaxlib, at install")
    try:
        if not _is_whole(path):
            return Availability(f"{path} does not load: its end is missing; {REBUILD}")
        library = ctypes.CDLL(str(path))
        made_for = library.gradtx_native_format() if hasattr(library, "gradtx_native_format") else "before 4"
        if made_for != FORMAT:
            return Availability(f"{path} is built for program format {made_for}, this gradtx has {FORMAT}; {REBUILD}")
        ours = library.gradtx_native_api_major(), library.gradtx_native_api_minor()
        theirs = _interface_of_jaxlib()
        if ours[0] != theirs[0] or ours > theirs:  # XLA would fail, and later: when it starts the CPU
            versions = ["{}.{}".format(*version) for version in (ours, theirs)]
            return Availability(f"built for version {versions[0]} of XLA's interface, this jaxlib has {versions[1]}")
        library.gradtx_native_ops.restype = library.gradtx_native_target.restype = ctypes.c_char_p
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.gradtx_native_map), platform="cpu")
    except Exception as error:  # of whatever kind: a library that does not load is as good as none
        return Availability(f"{path} does not load: {error}")
    ops = {}
    for code, line in enumerate(library.gradtx_native_ops().decode().splitlines()):
        name, arity, variants = line.split(" ", 2)
        ops[name] = Op(code, int(arity), frozenset(map(int, variants.split(","))))
    return Availability(None, library.gradtx_native_target().decode(), str(path), ops)
