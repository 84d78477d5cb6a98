"""What MkDocs calls while it builds the site (see ``mkdocs.yml``).

Maths becomes MathML, which browsers draw by themselves: no script, and nothing to fetch. They want a font with the
metrics of mathematics for it, so the site brings the one (STIX Two Math) that the package ziamath has inside.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path; the modules beside it are not installed

from latex2mathml.converter import convert  # noqa: E402 - as is what follows
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from docs.generate import api, notebook, pages  # noqa: E402

OF_THE_REPOSITORY = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "tests.md",
}
"""Files that are pages, as they are."""

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

_PICTURE = re.compile(r"^::: picture of (\w+) (\w+)$", re.MULTILINE)
_ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
_REFERENCE = re.compile(r"\[`([\w.]+)`\]\[\]")
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(\))")


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that are made."""
    made = {
        "rules/": ["rules/index.md", *(f"rules/{name}.md" for name in pages.RULES)],
        "optimizers/": ["optimizers/index.md", *(f"optimizers/{name}.md" for name in pages.OPTIMIZERS)],
        "notebooks/": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS],
    }
    config.nav = [{title: made.get(at, at) if isinstance(at, str) else at for title, at in part.items()}
                  for part in config.nav]  # fmt: skip
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and see to it that every public name has an entry."""
    try:
        texts = pages.made()
        for source, page in OF_THE_REPOSITORY.items():
            head = "---\nhide: [navigation]\n---\n\n" if page == "index.md" else ""
            texts[page] = head + relinked((ROOT / source).read_text(), source, page)
        pictures: dict[str, bytes] = {}
        for path in NOTEBOOKS:
            text, drawn = notebook.to_markdown(path)
            page = f"notebooks/{path.stem}.md"
            texts[page] = relinked(text, f"notebooks/{path.name}", page)
            pictures |= {f"notebooks/{name}": content for name, content in drawn.items()}
    except ValueError as error:
        raise PluginError(str(error)) from error
    for name, content in (texts | pictures | {"assets/STIXTwoMath-Regular.ttf": _font()}).items():
        files.append(File.generated(config, name, content=content))
    entries.cache_clear()
    found = entries(tuple((file.src_uri, file.content_string) for file in files if file.is_documentation_page()))
    if wrong := api.problems(api.PUBLIC, found):
        raise PluginError("; ".join(wrong))
    config.extra["entries"] = found
    return files


def _font() -> bytes:
    """The font of mathematics; found without importing ziamath, which has no other part in this."""
    (folder,) = importlib.util.find_spec("ziamath").submodule_search_locations  # pyright: ignore[reportOptionalMemberAccess, reportGeneralTypeIssues] - installed
    return Path(folder, "fonts", "STIXTwoMath-Regular.ttf").read_bytes()


@functools.cache
def entries(texts: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The page of each public name: the one that has its entry, or it for a heading."""
    found: dict[str, str] = {}
    for page, text in texts:
        for path in [*_ENTRY.findall(text), *re.findall(r"^# .*\{ #(gradtx\.\w+) \}$", text, re.MULTILINE)]:
            found[path] = page
            found |= {name: page for name in api.PUBLIC if name.startswith(f"{path}.")}
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in entries (``::: gradtx.rms``) and pictures (``::: picture of rule rms``), and make links of references to them (```[`rms`][]```)."""
    del files
    markdown = _ENTRY.sub(lambda found: api.entry(found[1]), markdown)
    markdown = _PICTURE.sub(lambda found: pages.figure(found[1], found[2]), markdown)
    return referring(markdown, page.file.src_uri, config.extra["entries"])


def referring(markdown: str, page: str, found: dict[str, str]) -> str:
    """Markdown in which references to entries are links from this page.

    Raises:
        PluginError: for a reference to what has no entry.
    """

    def link(reference: re.Match[str]) -> str:
        path = api.path_of(reference[1])
        if path not in found:
            raise PluginError(f"{page} refers to `{reference[1]}`, which has no entry")
        return f"[`{reference[1]}`]({_relative(found[path], page)}#{path})"

    return _REFERENCE.sub(link, markdown)


def relinked(markdown: str, source: str, page: str) -> str:
    """Markdown of a file of the repository in which links are those of its page in the site."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        target = OF_THE_REPOSITORY.get(target, target.removeprefix("docs/"))
        if target.startswith("notebooks/"):
            target = target.replace(".ipynb", ".md")
        return f"{found[1]}{_relative(target, page)}{found[3] or ''}{found[4]}"

    return _LINK.sub(link, markdown)


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Maths, as arithmatex marks it, becomes MathML."""
    del page, config, files
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda tex: _mathml(tex[1]), content)
    block = r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>'
    return re.sub(block, lambda tex: _mathml(tex[1], display="block"), content, flags=re.DOTALL)


@functools.cache
def _mathml(tex: str, display: str = "inline") -> str:
    return convert(html.unescape(tex.strip()), display=display)
