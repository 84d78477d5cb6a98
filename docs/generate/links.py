"""Where things stand in the site: entries of public names, pages of files in the repository; and links to both."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from docs.generate import api

__all__ = ["ENTRY", "PAGES", "entries", "referring", "relinked"]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "tests.md",
}
"""Files that are pages, as they are."""

ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)

_PAGE_OF = re.compile(r"^# .*\{ #(gradtx\.\w+) \}$", re.MULTILINE)
_REFERENCE = re.compile(r"\[`([\w.]+)`\]\[([\w.]*)\]")
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(\))")


def entries(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The page of each public name, among pages and their Markdown: the one that has its entry, or is called by it.

    >>> entries([("a.md", "::: gradtx.step"), ("b.md", "# rms { #gradtx.rms }")])
    {'gradtx.step': 'a.md', 'gradtx.rms': 'b.md'}
    """
    found: dict[str, str] = {}
    for page, text in texts:
        for path in [*ENTRY.findall(text), *_PAGE_OF.findall(text)]:
            found[path] = page
            found |= {name: page for name in api.PUBLIC if name.startswith(f"{path}.")}
    return found


def referring(markdown: str, page: str, found: Mapping[str, str]) -> str:
    """Markdown in which references to entries are links from this page.

    >>> referring("see [`rms`][]", "guide/state.md", {"gradtx.rms": "rules/rms.md"})
    'see [`rms`](../rules/rms.md#gradtx.rms)'

    Raises:
        ValueError: for a reference to what has no entry.
    """

    def link(reference: re.Match[str]) -> str:
        path = api.path_of(reference[2] or reference[1])
        if path is None or path not in found:
            raise ValueError(f"{page} refers to `{reference[1]}`, which has no entry")
        return f"[`{reference[1]}`]({_relative(found[path], page)}#{path})"

    return _REFERENCE.sub(link, markdown)


def relinked(markdown: str, source: str, page: str) -> str:
    """Markdown of a file of the repository in which links are those of its page in the site.

    >>> relinked("[a](notebooks/a.ipynb) [d](docs/dialects.md#x) [w](https://w.org)", "README.md", "about/home.md")
    '[a](../notebooks/a.md) [d](../dialects.md#x) [w](https://w.org)'
    """

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        target = PAGES.get(target, target.removeprefix("docs/"))
        if target.startswith("notebooks/"):
            target = target.replace(".ipynb", ".md")
        return f"{found[1]}{_relative(target, page)}{found[3] or ''}{found[4]}"

    return _LINK.sub(link, markdown)


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
