"""The project itself: floors that imports keep to, documented public names, commands in the README that run."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gradtx
import gradtx.rules

ROOT = Path(__file__).parents[2]

FREE = ("testing", "workbench")  # use what users use as well


def parts():
    """The parts of the package by the page on architecture, lowest first, with the parts that each imports from."""
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    return {part: set(re.findall(r"`(\w+)`", imports)) for part, imports in rows}


def part_of(module):
    return module.removeprefix("gradtx").removeprefix(".").split(".")[0]


def imports():
    """The parts that each part's modules import from; "" for the package itself, which shows what all have."""
    found = {}
    for path in sorted((ROOT / "gradtx").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} imports relatively"
                members = [f"gradtx.{alias.name}" for alias in node.names]
                names = members if node.module == "gradtx" else [node.module or ""]
            ours = {part_of(name) for name in names if name == "gradtx" or name.startswith("gradtx.")}
            found.setdefault(part_of(module), set()).update(ours)
    return {part: others - {part} for part, others in found.items()}


def test_imports_point_down_as_the_page_on_architecture_says():
    said, order, found = parts(), list(parts()), imports()
    assert set(order) == set(found) - {""}
    for part, others in found.items():
        if part:
            seen = {other for other in others if other in said or part not in FREE}
            assert seen == said[part], f"{part} imports from {seen}, and the page says {said[part]}"
            assert all(order.index(other) < order.index(part) for other in seen), f"{part} imports from above"


def test_runtime_needs_jax_optax_and_numpy_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", need)[0] for need in project["dependencies"]} == {"jax", "numpy", "optax"}
    others = ("sklearn", "matplotlib", "rich", "chex", "torch", "safetensors", "orbax", "flax", "equinox", "haiku")
    code = f"import sys, gradtx; print([m for m in {others} if m in sys.modules])"
    # chex, and what it brings, come with optax.
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(found.stdout)) <= {"chex"}


@pytest.mark.parametrize("name", gradtx.rules.__all__)
def test_rules_say_what_they_do_with_what_is_not_finite(name):
    assert "NaN" in (getattr(gradtx, name).__doc__ or "")
    assert getattr(gradtx, name).equation


@pytest.mark.parametrize("name", sorted(set(gradtx.__all__) - {"Arrays", "Hyper", "Named"}))
def test_public_names_are_documented(name):
    """A docstring; and for what one calls to make something, an example that runs."""
    thing = getattr(gradtx, name)
    doc = inspect.getdoc(thing)
    assert doc, f"{name} has no docstring"
    if inspect.isfunction(thing) or (isinstance(thing, type) and issubclass(thing, gradtx.Rule)):
        if name != "hyper":  # shown in Rule
            assert doctest.DocTestParser().get_examples(doc), f"{name} has no example"
        for parameter in inspect.signature(thing).parameters.values():
            if parameter.name in ("name", "state_dtype", "where") and isinstance(thing, type):
                continue  # documented once, in Rule
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name not in ("relu", "step"):
                assert re.search(rf"\b{parameter.name}\b", doc), f"{name} does not document {parameter.name}"


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert gradtx.__version__ == project["version"]
    assert f"## [{gradtx.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
