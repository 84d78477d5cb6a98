"""The documentation has all that is public, and its build fails where it should. The site itself: ``test_site.py``."""

import doctest
import io
import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gradtx as gx
from docs.generate import api, family, pages, pictures
from docs.generate.notebooks import NOTEBOOKS, SIZE, thumbnail

ROOT = Path(__file__).parents[2]
WRITTEN = [path.read_text() for path in (ROOT / "docs").glob("*/*.md")]


def entries(texts):
    """The public names for which Sphinx is told to make entries; with a module, those of what is in it."""
    told = [name for text in texts for name in re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE)]
    inside = [name for name in api.PUBLIC if any(name.rpartition(".")[0] == module for module in told)]
    return [name for name in {*told, *inside} if name not in ("gradtx.rules", "gradtx.optimizers")]


@pytest.mark.parametrize("module", [api, pages])
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_examples_of_the_extension():
    pytest.importorskip("sphinx")
    from docs.generate import extension

    test_examples(extension)


def test_every_public_name_has_an_entry_and_a_docstring():
    assert api.problems(api.PUBLIC, entries([*WRITTEN, *pages.made().values()])) == []
    public = {"gradtx.rms", "gradtx.dialects.keras.adam", "gradtx.native.available", "gradtx.Hyper", "gradtx.relu"}
    assert public <= set(api.PUBLIC)
    listed = {*gx.__all__, *gx.rules.__all__, *gx.optimizers.__all__}  # pyright: ignore[reportAttributeAccessIssue] - submodules
    assert all(api.path_of(name) for name in listed)


def undocumented():
    pass


class Bare(gx.MigrationReport):  # has the docstring of another
    __doc__ = "Bare(kept, fresh, dropped)"  # what a NamedTuple has by itself


@pytest.mark.parametrize("thing", [undocumented, Bare, gx.Hyper])
def test_a_name_without_a_docstring_is_a_problem(thing):
    names = {"gradtx.step": gx.step, "gradtx.Bare": thing}
    assert api.problems(names, names) == ["gradtx.Bare has no docstring"]


def torn():
    """A source.

    Source: Somebody (2020), "A long
        title".
    """


def test_a_source_that_would_be_a_definition_is_a_problem():
    assert api.problems({"gradtx.torn": torn}, ["gradtx.torn"]) == [
        "gradtx.torn has a Source whose second line is indented"
    ]


def test_a_name_that_no_page_has_is_a_problem_and_so_is_a_page_of_no_name():
    without = [text.replace(":: gradtx.step\n", ":: gradtx.gone\n") for text in WRITTEN]
    assert api.problems(api.PUBLIC, entries([*without, *pages.made().values()])) == [
        "gradtx.step is on no page",
        "gradtx.gone is on a page, and is not public",
    ]


@pytest.mark.parametrize(("table", "name"), [("RULES", "rms"), ("OPTIMIZERS", "adam")])
def test_a_rule_or_an_optimizer_that_its_table_lacks_is_a_problem(table, name, monkeypatch):
    monkeypatch.delitem(getattr(pages, table), name)
    with pytest.raises(ValueError, match=f"^{name} is not in docs/generate/{table.lower()}.py$"):
        pages.made()


def test_signatures_are_those_in_the_source():
    rms, _ = api.signature(gx.rms)
    assert rms.startswith("(decay: Hyper = 0.9, *, name: str | None = None,")
    hyper, _ = api.signature(gx.hyper)
    assert "default: Any = ..." in hyper
    assert "matrices: Select = matrix, " in api.signature(gx.muon)[0]  # a function, without its address
    step, returns = api.signature(gx.step)
    assert "tx: optax.GradientTransformation, params: Any" in step and returns
    for path, thing in api.PUBLIC.items():
        if not api.is_constant(thing) and (api.is_built(thing) or not isinstance(thing, type)) and callable(thing):
            assert not re.search("0x|<", "".join(api.signature(thing))), path


def test_the_page_of_an_optimizer_has_the_equation_of_each_rule():
    """Those of Muon's matrices, and of the chain inside of a rule, among them."""
    for name, labels in family.chains().items():
        shown = pages.shown(f"gradtx.{name}")
        assert all(f"   * - ``{label}``\n" in shown for label in labels), name


def test_notebooks_can_be_shown():
    """With a heading to be called by; every cell was run."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert "".join(cells[0]["source"]).startswith("# "), path
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), path


def test_the_gallery_has_every_notebook_with_a_picture(tmp_path):
    rows = re.findall(
        r"^\| \[.*\]\(\.\./notebooks/(\w+)\.ipynb\) \|", (ROOT / "docs" / "notebooks.md").read_text(), re.M
    )
    assert sorted(rows) == [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        with Image.open(io.BytesIO(thumbnail(path))) as image:
            assert image.format == "PNG" and min(image.size) > 80 and image.width <= SIZE[0] and image.height <= SIZE[1]
    (tmp_path / "bare.ipynb").write_text('{"cells": [{"outputs": [{"data": {"text/plain": "1"}}]}, {}]}')
    with pytest.raises(ValueError, match=r"bare\.ipynb has no picture"):
        thumbnail(tmp_path / "bare.ipynb")


def test_pictures_show_what_they_say():
    """The lanes of a chain, against numpy; and an SVG that takes its ink from the page."""
    s, expected = 0.0, []
    for g in pictures.GRADIENT:
        s = 0.9 * s + 0.1 * g**2
        expected.append(np.sqrt(s))
    seen = pictures.updates(gx.chain(gx.rms(0.9), pictures.root_v()))
    np.testing.assert_allclose(seen, expected, rtol=1e-5)  # float32
    drawn = pages.figure("rule", "scale")
    figure = ElementTree.fromstring(drawn)
    (picture,) = [node for node in figure if node.tag.endswith("svg")]
    assert picture.get("aria-label") == f"scale: {pages.RULES['scale'].caption}"
    assert "\n" not in drawn and "var(--picture-ink)" in drawn
    assert not re.search(f"{pictures.INK}|{pictures.MUTED}|{pictures.FAINT}", drawn)


BROKEN = {
    "page": "[page](gone.md)",
    "anchor": "[anchor](other.md#gone)",
    "file": "[file](gone.png)",
    "picture": "![picture](gone.png)",
    "folder": "[folder](gone/)",
    "name": "[name](#gradtx.rmsq)",
    "role": "{py:obj}`rmsq`",
}


def test_broken_links_fail_the_build(tmp_path):
    """With the settings of this project, on a small site: a warning for each of these, and for no others."""
    pytest.importorskip("sphinx")
    good = {"other": "## Part", "good": "[there](other.md#part), and back [here](good.md)"}
    for name, text in (good | BROKEN).items():
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    (tmp_path / "index.md").write_text("# Home\n\n```{toctree}\n:glob:\n\n*\n```\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "dummy", "-c", ROOT / "docs"]
    extensions = ["-D", "extensions=myst_nb,sphinx.ext.autodoc"]
    build = subprocess.run([*command, *extensions, tmp_path, tmp_path / "site"], capture_output=True, text=True)
    wrong = {Path(line.partition(":")[0]).stem for line in build.stderr.splitlines() if "WARNING" in line}
    assert build.returncode and wrong == set(BROKEN), build.stderr


def test_the_command_that_builds_it():
    command = 'pip install -e ".[docs]" && sphinx-build -W docs site'
    assert command in (ROOT / "README.md").read_text() and command in (ROOT / "CONTRIBUTING.md").read_text()
    assert "docs" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
