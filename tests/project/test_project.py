"""The project itself: floors that imports keep to, documented public names, commands in the README that run."""

import ast
import doctest
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gradtx
import gradtx.rules

ROOT = Path(__file__).parents[2]

# Lowest first; a module imports from its own floor or from below. A package stands for its modules.
FLOORS = [
    ["_core", "activations"],
    ["native"],
    ["_engine"],
    ["rules"],
    ["_chain"],
    ["_wrappers"],
    ["optimizers", "dialects", "_inspect"],
    ["_states", "_sweep"],
    ["testing"],
    ["workbench"],
    ["__main__"],
]
TOP = ("gradtx.testing", "gradtx.workbench", "gradtx.__main__")  # use what users use


def floor_of(module: str) -> int:
    own = module.removeprefix("gradtx").removeprefix(".").split(".")[0]
    if not own:
        return len(FLOORS)  # the package itself shows what all floors have
    return next(i for i, floor in enumerate(FLOORS) if own in floor)


def modules():
    names = [info.name for info in pkgutil.walk_packages(gradtx.__path__, "gradtx.")]
    return [name for name in names if name != "gradtx.native._kernel"]  # compiled, and no Python


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    source = Path(importlib.util.find_spec(module).origin).read_text()  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType] - exists
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [node.module or ""]
            if node.module == "gradtx":
                names = [f"gradtx.{alias.name}" for alias in node.names]
                if module.startswith(TOP):
                    continue
        for name in names:
            if name == "gradtx" and module.startswith(TOP):
                continue
            if name == "gradtx" or name.startswith("gradtx."):
                assert floor_of(name) <= floor_of(module), f"{module} imports {name}, which stands above it"


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
