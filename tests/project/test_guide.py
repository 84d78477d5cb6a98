"""The guide's pages are true: their Python runs from top to bottom, and prints what the block below it says."""

import contextlib
import doctest
import inspect
import io
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import gradtx as gx
from docs.generate import family
from gradtx import optimizers, testing
from gradtx._inspect.latex import plain

pytestmark = pytest.mark.usefixtures("quick_compilation", "ranks_promoted")

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
PARTS = ("algebra", "state", "speed")  # explain more than they show: their blocks are single lines of a program
CHEAP = ("is a value", "shows itself")  # the rest of the contract, for the rules of the guide, on demand
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def program(page):
    """Where the lines that are no complete program start from."""
    if page.stem not in PARTS:
        return {}
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    return {"gx": gx, "jax": jax, "jnp": jnp, "optax": optax, "params": params, "tx": gx.adam(0.1)}


def on_any_machine(text):
    """Where passes run is not compared on a machine without the compiled kernel."""
    return text if gx.native.available() else re.sub(r"(a step|one pass|measured): .*", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", [*PAGES, GUIDE.parents[1] / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_python_runs_and_prints_what_it_says(page, monkeypatch):
    check = testing.check
    monkeypatch.setattr(testing, "check", lambda tx, only=CHEAP, report=print: check(tx, only=only, report=report))
    run(page)


@pytest.mark.exhaustive
def test_rules_of_the_guide_keep_the_whole_contract():
    run(GUIDE / "writing.md")
    run(GUIDE.parents[1] / "CONTRIBUTING.md")


def run(page):
    """As a module of its own, from which classes can be pickled."""
    module = types.ModuleType(f"guide_{page.stem}")
    module.__dict__.update(program(page))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        run_in(module.__dict__, page)


def run_in(names, page):
    text, compare = page.read_text(), doctest.OutputChecker()
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python\n"), "a block that the test does not see"
    for code, shown in blocks:
        printed = io.StringIO()
        line = text[: text.index(code)].count("\n")
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), names)
        if shown:
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = compare.check_output(on_any_machine(shown), on_any_machine(printed.getvalue()), options)
            assert same, f"{page.name}, line {line}: shows\n{shown}\nprints\n{printed.getvalue()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    """To files that are there. Pages that are made are checked by the build of the site, and so are headings."""
    made = ("rules", "optimizers", "notebooks.md", "benchmarks.md", "contributing.md", "claims.md")
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text()):
        path = (page.parent / target).resolve()
        assert path.exists() or path.relative_to(GUIDE.parent).parts[0] in made, target


def test_the_glossary_has_every_symbol_of_the_rules():
    first = "\n".join(line.split("|")[1] for line in (GUIDE / "glossary.md").read_text().splitlines() if "|" in line)
    made = [getattr(gx, name) for name in gx.rules.__all__]  # pyright: ignore[reportAttributeAccessIssue] - submodule
    equations = [rule.equation if isinstance(rule.equation, str) else rule().equation for rule in made]
    words = {
        "min",
        "max",
        "sign",
        "clip",
        "atan",
        "columns",
        "rows",
        "overline",
        "every",
        "steps",
        "of",
        "if",
        "out",
        "in",
    }
    for equation in equations:
        text = re.sub(r"_\(|[₀-₉0-9^²ᵀ]|_t[+−]1|_t|_r|_[0-9]", " ", plain(equation))
        symbols = {word for word in re.findall(r"[^\W\d_]+", text)} - words
        for symbol in symbols:
            assert all(letter in first for letter in symbol), f"{symbol} of {equation}"


@pytest.mark.parametrize("name", optimizers.__all__)
def test_optimizers_say_when_to_use_them(name):
    assert "\nWhen to use: " in (inspect.getdoc(getattr(gx, name)) or "")


def test_the_map_is_made_from_the_chains():
    """Some of what it says, by hand."""
    chains, pairs = family.chains(), family.neighbours()
    assert chains["muon"][:3] == ("momentum", "quasi_hyperbolic", "orthogonalize")
    assert {
        ("adam", "amsgrad", "`max_v` added behind `rms`"),
        ("adam", "yogi", "`yogi_rms` for `rms`"),
        ("signum", "lion", "`quasi_hyperbolic` added behind `momentum`"),
        ("adam", "galore", "`in_subspace` around `momentum`"),
        ("article_adam", "prodigy", "`in_units_of_distance` around `momentum`"),
    } <= set(pairs)
    of_muon = ("lion", "muon", "`orthogonalize` for `sign`, `scale_by_shape` added behind `orthogonalize`")
    assert of_muon in family.around("muon") and "laprop" in dict(pair[:2] for pair in family.around("adopt"))
    assert all(family.around(name) for name in chains)
    figure = ElementTree.fromstring(family.map_svg())
    shown = ["".join(node.itertext()) for node in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert set(chains) <= set(shown) and {rule for labels in chains.values() for rule in labels} <= set(shown)
    assert len(figure.findall("{http://www.w3.org/2000/svg}circle")) == sum(len(set(c)) for c in chains.values())
