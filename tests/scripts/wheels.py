"""Build the sdist and from it the wheel, install that in fresh environments, and run ``smoke.py`` in each.

    python tests/scripts/wheels.py                        # each Python of PYTHONS that is on the path
    python tests/scripts/wheels.py --oldest /some/python  # these Pythons instead, and only the oldest dependencies

In each Python both with the oldest releases of jax, optax and numpy that pyproject.toml allows and that have wheels for
it, and with the newest. Prints a table of Markdown. Exits with status 1 if anything fails, if a Python that was asked
for is not there, or if none is.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "pyproject.toml"
PYTHONS = ["python3.11", "python3.12", "python3.13"]
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}


def run(*command, **kwargs):
    """The output of a command; if it fails, all of that as an error."""
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def uv(*arguments):
    """uv, which resolves to the oldest as well as to the newest, with the Pythons that are there."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "uv"
    return run(program, *arguments, env=os.environ | {"UV_PYTHON_DOWNLOADS": "never"})


def build(folder):
    """The wheel, from the sdist; one for every Python of this platform, and what is in it."""
    uv("build", "--quiet", "--python", sys.executable, "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    (_,) = folder.glob("*.tar.gz")
    name, _, python, abi, _ = wheel.stem.split("-")
    assert (name, python, abi) == ("gradtx", "py3", "none"), wheel.name
    files = zipfile.ZipFile(wheel).namelist()
    assert not [file for file in files if not file.startswith("gradtx")], files
    return wheel, any(file.startswith("gradtx/native/_kernel.") for file in files)


def smoke(wheel, kernel, python, resolution, folder):
    """The cells of a row of the table: what was installed, and how it went."""
    uv("venv", "--quiet", "--python", python, folder)
    ours = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Its dependencies once more, from pyproject.toml: of what a wheel brings along, uv takes the newest in any case.
    limits = ["--only-binary", ":all:", "--resolution", RESOLUTIONS[resolution], "--requirements", PROJECT]
    uv("pip", "install", "--quiet", "--python", ours, *limits, wheel)
    found = run(ours, "-W", "error", "-I", Path(__file__).with_name("smoke.py"), ROOT / "README.md", cwd=folder).strip()
    least = re.findall(r'"(?:jax|optax)>=([\d.]+)', PROJECT.read_text())[:2]
    if resolution == "oldest":
        assert all(f"| {version}" in found for version in least), f"not the oldest dependencies: {found}"
    assert not kernel or "no native kernel" not in found, f"the kernel in the wheel does not run: {found}"
    return found


def there(python):
    """Whether a command runs: a name may be on the path and lead nowhere."""
    try:
        run(python, "-c", "")
    except (OSError, RuntimeError):
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description="Build, install and run gradtx in fresh environments.")
    parser.add_argument("pythons", nargs="*", help="names or paths; default: " + ", ".join(PYTHONS))
    parser.add_argument("--oldest", action="store_true", help="only the oldest dependencies")
    arguments = parser.parse_args()
    wanted = arguments.pythons or PYTHONS
    found = [python for python in wanted if there(python)]
    failed = not found or (bool(arguments.pythons) and found != wanted)
    with tempfile.TemporaryDirectory() as folder:
        wheel, kernel = build(Path(folder) / "dist")
        print(f"{wheel.name}{'' if kernel else ', without the kernel'}\n")
        print("| Python | jax | optax | numpy | a step runs in | result |\n|---|---|---|---|---|---|")
        for python in wanted:
            for resolution in list(RESOLUTIONS)[: 1 if arguments.oldest else None]:
                cells, result = f"{python} | {resolution} | | | ", "not on this machine"
                if python in found:
                    where = Path(folder) / f"{wanted.index(python)}-{resolution}"
                    try:
                        cells, result = smoke(wheel, kernel, python, resolution, where), "passes"
                    except (AssertionError, RuntimeError) as error:
                        print(error, file=sys.stderr)
                        result, failed = "FAILS", True
                print(f"| {cells} | {result} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
