"""Everything in the catalog over the four devices of a mesh, and under jax's settings, one line for each.

    python tests/scripts/modes.py [name ...]

names entries of ``catalog.py``; all of them without.
"""

import os
import sys
from pathlib import Path

import jax

from gradtx import testing

sys.path.append(str(Path(__file__).parents[1]))
from catalog import ALL, LACKING

MODES = (
    "works in shard map",
    "works on explicit meshes",
    "keeps to strict types",
    "works under guards",
    "leaks no tracers",
)


def outcomes(name: str, tx) -> dict[str, str]:
    """By mode: "yes", or what was found."""
    found = {}
    for mode in MODES:
        if (mode, name) in LACKING:
            found[mode] = "no"
            continue
        lines: list[str] = []
        try:
            testing.check(tx, only=[mode], report=lines.append)
        except AssertionError as error:
            lines.append(str(error).splitlines()[-1])
        found[mode] = "yes" if lines[-1].startswith("holds") else lines[-1].strip()
    return found


def main(names: list[str]) -> int:
    assert len(jax.devices()) == 4
    failed = 0
    for name in names or ALL:
        found = outcomes(name, ALL[name])
        failed += any(result not in ("yes", "no") for result in found.values())
        print(" | ".join([name, *found.values()]), flush=True)
    return failed


if __name__ == "__main__":  # and not where tests are collected, which import this as well
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    sys.exit(main(sys.argv[1:]))
