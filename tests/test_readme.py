"""What the README shows is true: its Python runs, its table is what is printed, its commands work."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

import gradtx as gx

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs_and_prints_what_it_says():
    namespace = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(block, namespace)
    (shown,) = blocks("text")
    (table, step), (shown_table, shown_step) = (text.split("a step: ") for text in (printed.getvalue(), shown))
    assert table == shown_table
    assert step == shown_step if gx.native.available() else "in XLA" in step
    example = {}
    exec(blocks("python")[0], example)
    assert float(jnp.linalg.norm(example["params"])) < 0.1  # the ten lines do find the minimum


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
        "pytest": ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "tests/test_readme.py"],
    }
    program = Path(sys.executable).parent / shlex.split(command)[0]
    done = subprocess.run(
        [program, *shlex.split(command)[1:], *small[command]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), f"README links to {target}"
    for target in re.findall(r"`((?:notebooks|docs|tests|benchmarks)/[^`]+)`", README):
        assert (ROOT / target).exists(), f"README names {target}"
