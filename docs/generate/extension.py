"""The part of the documentation that is gradtx's own, as an extension of Sphinx (see ``docs/conf.py``).

- Pages that are made from the code: one for each rule and optimizer. Files of the repository that are pages too.
- ``picture``, a directive: ``picture:: rule rms``.
- Code that is the name of something public is a link to its entry.
- The table of notebooks is a gallery: each row gets a picture out of its notebook.
- Equations are MathML, which browsers draw by themselves: no script, and nothing to fetch.
- The build fails for a public name without an entry or a docstring.
"""

from __future__ import annotations

import functools
import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from docs.generate import api, pages
from docs.generate.notebooks import NOTEBOOKS, thumbnail

ROOT = Path(__file__).parents[2]
LOGGER = logging.getLogger(__name__)

COPIES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "tests.md",
} | {f"notebooks/{path.name}": f"notebooks/{path.name}" for path in NOTEBOOKS}
"""Files of the repository that are pages as they are, and where they stand in the documentation."""

NO_SUMMARIES = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false'
"""Results of a search show pieces of pages. A browser does not let a page that is opened from the disk read others."""

OF_THE_LOST = """\
<script>
  const folder = location.pathname.match(/^(.*\\/)(guide|notebooks|optimizers|reference|rules)\\//)
  if (folder) document.write(`<base href="${folder[1]}">`)
</script>
"""
"""For 404.html, which a server shows in place of a page of any folder, wherever the documentation stands."""

_INDENTED = re.compile(r"^(?!>>>|::$)(\S.*?)(:{0,2})\n\n(?=    )", re.MULTILINE)
_VERBATIM = re.compile(r"(``.+?``|^ *>>> (?:.+\n?)*|::\n\n(?:(?: .*)?\n)+)", re.MULTILINE)
_ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.MULTILINE)
_LINK = re.compile(r"`[^`\n]+`|(\]\()(?!\w+:|#)([^)#\s]+)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("picture", Picture)
    app.add_html_math_renderer("mathml", (_inline_equation, None), (_equation, None))
    app.add_js_file(None, body=NO_SUMMARIES)
    app.connect("config-inited", _write_pages)
    app.connect("source-read", _relink)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon reads it
    app.connect("autodoc-skip-member", _skipped)
    app.connect("doctree-read", _link_names)
    app.connect("doctree-read", _add_thumbnails, priority=400)  # before Sphinx collects the images
    app.connect("env-check-consistency", _check_entries)
    app.connect("html-page-context", _find_home)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Picture(SphinxDirective):
    """``picture:: rule rms``, ``picture:: optimizer adam`` or ``picture:: claim cliff``: drawn, with a caption."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", pages.figure(*self.arguments), format="html")]


def _write_pages(app: Sphinx, config: Any) -> None:
    """Write the pages that are made, where they have changed, and remove those of rules that are gone."""
    del config
    docs = Path(app.srcdir)
    made = {name: text.encode() for name, text in pages.made().items()}
    made |= {page: (ROOT / file).read_bytes() for file, page in COPIES.items()}
    made |= {f"notebooks/{path.stem}.png": thumbnail(path) for path in NOTEBOOKS}
    for folder in ("rules", "optimizers", "notebooks"):
        for path in (docs / folder).glob("*"):
            if path.relative_to(docs).as_posix() not in made:
                path.unlink()
    for name, content in made.items():
        path = docs / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def relinked(markdown: str, page: str) -> str:
    """Markdown as in the repository made Markdown of the site: links to files that are pages; anchors.

    >>> relinked("[`a`](notebooks/a.ipynb) `[c](docs/c)` [d](docs/dialects.md#x) [w](https://w.org)", "contributing.md")
    '[`a`](notebooks/a.ipynb) `[c](docs/c)` [d](dialects.md#x) [w](https://w.org)'
    >>> relinked("[b](../../benchmarks/README.md) [c](../../docs/notebooks/c.md)", "guide/speed.md")
    '[b](../benchmarks.md) [c](../notebooks/c.ipynb)'
    >>> relinked('<a id="weight"></a>', "guide/glossary.md")
    '(weight)='
    """
    source = next((file for file, copy in COPIES.items() if copy == page), f"docs/{page}")

    def link(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]  # code
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = COPIES.get(target, target.removeprefix("docs/"))
        if target.startswith("notebooks/"):
            target = target.replace(".md", ".ipynb")
        return match[1] + posixpath.relpath(target, posixpath.dirname(page) or ".")

    return _ANCHOR.sub(r"(\1)=", _LINK.sub(link, markdown))


def _find_home(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    del app, template, doctree
    if page == "404":
        context["metatags"] = OF_THE_LOST + context.get("metatags", "")


def _relink(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(docname)).relative_to(app.srcdir).as_posix()
    source[0] = relinked(source[0], page)


def _signature(app: Sphinx, what: str, name: str, thing: Any, *others: Any) -> tuple[str, str] | None:
    """Of what is called: the signature as it is written. Of states and other tuples: none, gradtx makes them."""
    del app, others
    if what in ("function", "method"):
        return api.signature(thing)
    if what == "class":
        return api.signature(thing) if api.is_built(thing) else ("", "")
    return None


def _docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """The docstring of a constant; labels in bold; pictures and recipes; what modules share."""
    del app, options
    if what == "data":
        lines[:] = [*api.docstring(name, thing).splitlines(), ""]
    lines[:] = [re.sub(r"^(State|Source): ", r"**\1**: ", line) for line in _restructured("\n".join(lines)).split("\n")]
    if path := api.path_of(name) if what in ("class", "function") else None:
        gap = lines.index("") if "" in lines else len(lines)
        lines[gap:gap] = pages.shown(path).splitlines()
    if what == "module":
        lines += pages.shared(name, thing).splitlines()


def _restructured(doc: str) -> str:
    r"""A docstring as reStructuredText: what is indented is a block of text as it stands, and bars are bars.

    >>> print(_restructured("The square of |g| is\n\n    |g|² = ``a|b``\n\nor ``|g|``."))
    The square of \|g\| is
    <BLANKLINE>
    ::
    <BLANKLINE>
        |g|² = a|b
    <BLANKLINE>
    or ``|g|``.
    >>> print(_restructured("::\n\n    |g|²"))
    ::
    <BLANKLINE>
        |g|²
    """
    doc = _INDENTED.sub(lambda end: f"{end[1]}::\n\n" if end[2] else f"{end[1]}\n\n::\n\n", doc)
    text: list[str] = []
    for i, part in enumerate(_VERBATIM.split(doc)):
        block = part.startswith("::")
        text.append(part.replace("``", "") if block else part if i % 2 else part.replace("|", r"\|"))
    return "".join(text)


def _skipped(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Fields of tuples, which the docstring describes."""
    del app, what, name, skip, options
    return True if (getattr(member, "__doc__", None) or "").startswith("Alias for field number") else None


def _link_names(app: Sphinx, doctree: nodes.document) -> None:
    """Make code that is the name of something public a link to its entry; inside that entry, leave it."""
    for code in list(doctree.findall(nodes.literal)):
        text, entry = code.astext(), _entry_around(code)
        path = api.path_of(text, entry.rpartition(".")[0] or "gradtx")
        inside = isinstance(
            code.parent, nodes.reference | addnodes.pending_xref | addnodes.download_reference | nodes.title
        )
        if path is None or path == entry or inside:
            continue
        attributes = {"refdomain": "py", "reftype": "obj", "reftarget": path, "refdoc": app.env.docname}
        link = addnodes.pending_xref("", code.deepcopy(), refwarn=True, refexplicit=True, **attributes)
        code.replace_self(link)


def _add_thumbnails(app: Sphinx, doctree: nodes.document) -> None:
    """Put its thumbnail in front of each notebook in the table of all of them."""
    if app.env.docname != "notebooks":
        return
    for table in doctree.findall(nodes.table):
        table["classes"].append("gallery")
    for link in list(doctree.findall(addnodes.pending_xref)):
        picture = Path(link["reftarget"]).with_suffix(".png")
        image = nodes.image(uri=f"notebooks/{picture.name}", alt=f"A picture of {link.astext()}")
        text = link[0]  # what of a link stays when its end is found
        assert isinstance(text, nodes.inline)
        text.insert(0, image)


def _entry_around(node: nodes.Node) -> str:
    """The path of the entry that a part of a page stands in; none is ''."""
    while node := node.parent:  # pyright: ignore[reportAssignmentType] - a document has no parent
        if isinstance(node, addnodes.desc):
            signature = node[0]
            ids: list[str] = signature.get("ids", []) if isinstance(signature, nodes.Element) else []
            if ids and ids[0] in api.PUBLIC:
                return ids[0]
    return ""


def _check_entries(app: Sphinx, env: Any) -> None:
    objects = env.domains["py"].objects
    kinds = ("function", "class", "data", "module")
    entries = [name for name, entry in objects.items() if entry.objtype in kinds and not entry.aliased]
    modules = {module.__name__ for module in api.MODULES}
    for wrong in api.problems(api.PUBLIC, [name for name in entries if name in api.PUBLIC or name not in modules]):
        LOGGER.warning(wrong)


def _inline_equation(translator: Any, node: nodes.math) -> None:
    parts = node.astext().split(r", \quad ")  # between which lines may break
    translator.body.append(", &ensp;".join(map(mathml, parts)))
    raise nodes.SkipNode


def _equation(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="equation">{mathml(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


@functools.cache
def mathml(tex: str, display: str = "inline") -> str:
    """An equation in LaTeX as MathML."""
    tex = tex.strip()
    for made, wanted in (("lv", r"\left|"), ("rv", r"\right|"), ("lV", r"\left\|"), ("rV", r"\right\|")):
        tex = tex.replace(f"\\{made}ert", wanted)  # bars as high as what is between them
    made = convert(tex, display=display)
    made = made.replace("&#x02190;</mo><mo>&#x02212;", '&#x02190;</mo><mo form="prefix">&#x02212;')  # ← −η
    return re.sub("<mo>([a-z]+)</mo>", r'<mo lspace="0.17em" rspace="0">\1</mo>', made)  # max(
