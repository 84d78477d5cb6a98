"""The documentation has all that is public, and its build fails where it should. The site itself is built in CI."""

import doctest
import json
import re
import tomllib
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import gradtx as gx
from docs.generate import api, docstrings, links, notebook, pages, pictures

ROOT = Path(__file__).parent.parent
REFERENCE = [(f"reference/{path.name}", path.read_text()) for path in (ROOT / "docs" / "reference").glob("*.md")]


@pytest.mark.parametrize("module", [api, docstrings, links, pages])
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_every_public_name_has_an_entry_and_a_docstring():
    found = links.entries([*REFERENCE, *pages.made().items()])
    assert api.problems(api.PUBLIC, found) == []
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
    pages_of = dict.fromkeys(names, "reference/chains.md")
    assert api.problems(names, pages_of) == ["gradtx.Bare has no docstring"]


def test_a_name_that_no_page_has_is_a_problem_and_so_is_a_page_of_no_name():
    without = [(page, text.replace("::: gradtx.step", "")) for page, text in REFERENCE]
    found = links.entries([*without, *pages.made().items()])
    assert api.problems(api.PUBLIC, found) == ["gradtx.step is on no page of the reference"]
    stale = api.problems({}, {"gradtx.gone": "reference/chains.md"})
    assert stale == ["reference/chains.md has an entry for gradtx.gone, which is not public"]


@pytest.mark.parametrize(("table", "name"), [("RULES", "rms"), ("OPTIMIZERS", "adam")])
def test_a_rule_or_an_optimizer_that_its_table_lacks_is_a_problem(table, name, monkeypatch):
    monkeypatch.delitem(getattr(pages, table), name)
    with pytest.raises(ValueError, match=f"^{name} is not in docs/generate/{table.lower()}.py$"):
        pages.made()


def test_a_reference_to_nothing_is_a_problem():
    with pytest.raises(ValueError, match=r"guide/a.md refers to `rmsq`, which has no entry"):
        links.referring("see [`rmsq`][]", "guide/a.md", {"gradtx.rms": "rules/rms.md"})


def test_docstrings_as_markdown():
    made = api.body("gradtx.monitor")
    assert "gradtx.monitor(\n    every: int = 1," in made
    assert "\n**Args**\n\n- `every`: n ≥ 1: measure" in made
    assert "```text\n‖g‖, ‖u‖" in made
    assert "**State**: [`MonitorState`][gradtx.MonitorState], six" in made
    assert "as in [`sgd`][gradtx.dialects.keras.sgd]" in api.body("gradtx.dialects.keras.adagrad")
    assert "import torch\n\ntx = " in api.entry("gradtx.dialects")  # one block of code
    assert "```pycon\n>>> import gradtx" in made
    assert "``" not in made.replace("```", "")
    assert "#### `switched`" in api.body("gradtx.SwitchState")
    assert "#### `apply`" in api.body("gradtx.Rule") and "#### `needs_params`" in api.body("gradtx.Rule")


def test_notebooks_are_shown_as_they_are_stored(tmp_path):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text, drawn = notebook.to_markdown(path)
        assert text.startswith("# ")
        assert len(drawn) == len(re.findall(r'"image/png"', path.read_text()))
        assert all(picture.startswith(b"\x89PNG") and f"]({name})" in text for name, picture in drawn.items())
    cell = {"cell_type": "code", "source": "1", "execution_count": None, "outputs": []}
    bad = tmp_path / "bad.ipynb"
    for cells, wrong in [
        ([cell], "heading"),
        ([{"cell_type": "markdown", "source": ["# A"]}, cell], "without outputs"),
    ]:
        bad.write_text(json.dumps({"cells": cells}))
        with pytest.raises(ValueError, match=wrong):
            notebook.to_markdown(bad)


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
    assert "\n" not in drawn and "--md-default-fg-color" in drawn
    assert not re.search(f"{pictures.INK}|{pictures.MUTED}|{pictures.FAINT}", drawn)


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("[there](other.md#part)", False),
        ("[page](gone.md)", True),
        ("[anchor](other.md#gone)", True),
        ("[file](gone.png)", True),
        ("![picture](gone.png)", True),
        ("[folder](gone/)", True),
    ],
)
def test_a_broken_link_fails_the_build(text, fails, tmp_path):
    """With the settings of this project, on a site of two pages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # raised while these are imported, not by us
        build = pytest.importorskip("mkdocs.commands.build")
        config = pytest.importorskip("mkdocs.config")
        yaml = pytest.importorskip("yaml")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Home\n\n{text}\n")
    (docs / "other.md").write_text("# Other\n\n## Part\n")
    settings = {"site_name": "small", "validation": ours["validation"], "theme": {"name": "mkdocs"}, "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    small = config.load_config(str(tmp_path / "mkdocs.yml"), strict=True)
    if fails:
        with pytest.raises(SystemExit):
            build.build(small)
    else:
        build.build(small)


def test_the_command_that_builds_it():
    command = 'pip install -e ".[docs]" && mkdocs build --strict'
    assert command in (ROOT / "README.md").read_text() and command in (ROOT / "CONTRIBUTING.md").read_text()
    assert "docs" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
