"""Random programs and hostile calls for the compiled kernel, under sanitizers; see fuzz_kernel.cc.

    python tests/scripts/fuzz_kernel.py                             # a share of a few seconds
    python tests/scripts/fuzz_kernel.py --cases 200000 --jobs 2     # AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/scripts/fuzz_kernel.py --sanitizers thread
    python tests/scripts/fuzz_kernel.py --sanitizers none           # the vector code that users run
    python tests/scripts/fuzz_kernel.py --first 4711 --cases 1      # one case again

Ends with 0 where there is no compiler, no headers or no such sanitizer, and says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]
SANITIZERS = {"address": "address,undefined", "thread": "thread", "none": ""}
STRICT = {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def build(folder: Path, sanitizers: str) -> Path | str:
    """The fuzzer, or why there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    headers = Path(jax.ffi.include_dir())
    if compiler is None or not (headers / "xla" / "ffi").is_dir():
        return "no C++ compiler, or no headers of jaxlib"
    # Not contracted, so that results are those of the instructions one by one.
    flags = ["-std=c++17", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread"]
    of_kernel = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-O0"] if sanitizers else ["-O3"]
    link = of_kernel[:1] if sanitizers else []
    (folder / "empty.cc").write_text("int main() {}\n")
    if subprocess.run([compiler, *link, folder / "empty.cc", "-o", folder / "empty"], capture_output=True).returncode:
        return f"{compiler} has not -fsanitize={sanitizers}"

    def compiled(source: Path, *extra: str) -> Path:
        to = folder / f"{source.stem}.o"
        subprocess.run([compiler, *flags, *extra, "-isystem", headers, "-c", source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor() as at_once:
        kernel = at_once.submit(compiled, ROOT / "gradtx" / "native" / "kernel.cc", *of_kernel)
        driver = at_once.submit(compiled, Path(__file__).with_suffix(".cc"), "-O1", *(link if "thread" in link else []))
    subprocess.run([compiler, *link, "-pthread", kernel.result(), driver.result(), "-o", folder / "fuzz"], check=True)
    return folder / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sanitizers", choices=SANITIZERS, default="address")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = build(Path(folder), SANITIZERS[given.sanitizers])
        if isinstance(fuzz, str):
            print(f"skipped: {fuzz}")
            return 0
        share = -(-given.cases // given.jobs)
        starts = range(given.first, given.first + given.cases, share)
        ends = [min(start + share, given.first + given.cases) for start in starts]
        running = [
            subprocess.Popen([fuzz, str(start), str(end - start)], env=STRICT | os.environ)
            for start, end in zip(starts, ends, strict=True)
        ]
        return max(process.wait() != 0 for process in running)


if __name__ == "__main__":
    sys.exit(main())
