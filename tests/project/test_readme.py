"""The README is true: its Python runs, its commands work, its links lead somewhere."""

import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_find_the_minimum():
    example = {}
    (python,) = blocks("python")
    exec(python, example)
    assert float(jnp.linalg.norm(example["params"])) < 0.1


def test_it_is_two_screens():
    """Of 45 lines in 120 columns, a picture aside; what else there is to show stands in the guide."""
    rows = sum(max(1, math.ceil(len(line) / 120)) for line in README.splitlines())
    assert rows <= 90


def test_the_two_commands_come_first():
    install, test = blocks("bash")
    assert install == 'pip install -e ".[demo]" && gradtx compare\n'
    assert test == 'pip install -e ".[test]" && pytest\n'
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"demo", "test"} <= set(extras)


@pytest.mark.parametrize("command", ["gradtx compare", "pytest"])
def test_commands_run(command, tmp_path):
    """As written, but small: few epochs, and only collecting the tests. Installing from nothing is CI's first step."""
    assert any(line.split(" && ")[-1] == command for block in blocks("bash") for line in block.splitlines())
    small = {
        "gradtx compare": ["--epochs", "1", "--optimizers", "adam", "--output", str(tmp_path / "picture.png")],
        "pytest": ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "tests/project/test_readme.py"],
    }
    program = Path(sys.executable).parent / shlex.split(command)[0]
    done = subprocess.run(
        [program, *shlex.split(command)[1:], *small[command]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_lead_somewhere():
    for target in re.findall(r"(?:\]\(|src=\")(?!http)([^)#\"]+)", README):
        assert (ROOT / target).exists(), f"README links to {target}"
    for target in re.findall(r"`((?:notebooks|docs|tests|benchmarks)/[^`]+)`", README):
        assert (ROOT / target).exists(), f"README names {target}"
