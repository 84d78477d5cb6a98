"""Builds the optional native kernel; everything else is in pyproject.toml.

The kernel needs a C++17 compiler and the headers of XLA's foreign function interface, which come with jaxlib. That is
why jaxlib is among the build requirements: an isolated build has it in its own environment, one without isolation
takes the installed one. It is only read. Without compiler or headers the installation succeeds all the same, and
``gradtx.native.available()`` says that the kernel was not built.

The kernel is loaded by ctypes and knows nothing of Python, so a wheel is one for every Python on its platform.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def jaxlib_headers() -> list[str]:
    """Where the headers are, without importing jaxlib; empty if there are none."""
    spec = importlib.util.find_spec("jaxlib")
    folders = spec.submodule_search_locations or [] if spec else []
    return [str(Path(folder) / "include") for folder in folders if (Path(folder) / "include" / "xla" / "ffi").is_dir()]


class OptionalKernel(build_ext):
    """Compiles only where there are headers. What it makes is no module of Python: no init function."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + importlib.machinery.EXTENSION_SUFFIXES[-1]  # the platform's alone

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols

    def build_extensions(self) -> None:
        if not jaxlib_headers():
            print("gradtx: jaxlib has no headers here, so the native kernel is not built", file=sys.stderr)
            self.extensions = []
        super().build_extensions()


class AnyPython(bdist_wheel):
    """Names the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"bdist_wheel": AnyPython, "build_ext": OptionalKernel},
    ext_modules=[
        Extension(
            "gradtx.native._kernel",
            sources=["gradtx/native/kernel.cc"],
            language="c++",
            # No option changes a result. The first lets √ be an instruction, the second lets choices be vectors, and
            # the third, against what Python itself may be built with, lets a loop over codes load vectors.
            extra_compile_args=[
                *("-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"),
                *("-fno-wrapv", "-fvisibility=hidden"),
                *(flag for folder in jaxlib_headers() for flag in ("-isystem", folder)),  # silent about their warnings
            ],
            depends=["setup.py"],
            optional=True,
        )
    ],
)
