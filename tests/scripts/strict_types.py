"""Pyright and mypy, both strict, on code that uses gradtx.

    python tests/scripts/strict_types.py

They have to accept the examples of the guide's tour, all in one file, and to refuse ``wrong_types.py`` in just the
lines that are marked there. Exits with status 1 and prints the differences if not.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "guide" / "tour.md"
WRONG = Path(__file__).with_name("wrong_types.py")
# Not about gradtx: optax has types but no py.typed, and jax leaves some types in the signatures of jax.numpy unknown.
PYRIGHT = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False, "extraPaths": [str(ROOT)]}
MYPY = "[mypy]\nstrict = True\nfollow_imports = silent\n[mypy-optax.*]\nfollow_untyped_imports = True\n"

Errors = dict[tuple[str, int], list[str]]
"""The messages, by file and line."""


def of_pyright(folder, files):
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", folder / "pyrightconfig.json"]
    done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True)
    errors: Errors = {}
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        path, start, end = Path(found["file"]), found["range"]["start"], found["range"]["end"]
        line = path.read_text().splitlines()[start["line"]]
        if not line[start["character"] : end["character"]].startswith("jnp."):
            errors.setdefault((path.name, start["line"] + 1), []).append(found["message"])
    return errors


def of_mypy(folder, files):
    (folder / "mypy.ini").write_text(MYPY)
    command = [sys.executable, "-m", "mypy", "--config-file", folder / "mypy.ini", "--cache-dir", folder / "cache"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode < 2, done.stdout + done.stderr
    errors: Errors = {}
    for path, line, message in re.findall(r"^(.+?):(\d+): error: (.*)", done.stdout, re.MULTILINE):
        errors.setdefault((Path(path).name, int(line)), []).append(message)
    return errors


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        tour = folder / "tour.py"
        tour.write_text("\n".join(re.findall(r"```python\n(.*?)```", TOUR.read_text(), re.DOTALL)))
        wrong = folder / WRONG.name
        wrong.write_text(WRONG.read_text())
        expected = {(wrong.name, i) for i, line in enumerate(wrong.read_text().splitlines(), 1) if "# wrong" in line}
        failed = False
        for checker, check in {"pyright": of_pyright, "mypy": of_mypy}.items():
            errors = check(folder, [tour, wrong])
            for file, line in sorted(errors.keys() - expected):
                text = (folder / file).read_text().splitlines()[line - 1].strip()
                print(f"{checker} refuses {file}, line {line}: {text}\n  {'; '.join(errors[file, line])}")
            for file, line in sorted(expected - errors.keys()):
                print(f"{checker} accepts {file}, line {line}: {(folder / file).read_text().splitlines()[line - 1]}")
            failed = failed or errors.keys() != expected
            refused = len(expected & errors.keys())
            print(f"{checker}: {refused} of {len(expected)} wrong lines refused, {len(errors) - refused} others")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
