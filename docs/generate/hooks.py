"""What MkDocs calls while it builds the site (see ``mkdocs.yml``).

Maths becomes MathML, which browsers draw by themselves: no script, and nothing to fetch. They want a font with the
metrics of mathematics for it, so the site brings the one (STIX Two Math) that the package ziamath has inside.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path; the modules beside it are not installed

from latex2mathml.converter import convert  # noqa: E402 - as is what follows
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from docs.generate import api, links, notebook, pages  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"), key=lambda path: (path.stem != "quickstart", path.stem))

_PICTURE = re.compile(r"^::: picture of (\w+) (\w+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Fill in the parts of the navigation that are made."""
    made: dict[Any, list[str]] = {
        "rules/": ["rules/index.md", *(f"rules/{name}.md" for name in pages.RULES)],
        "optimizers/": ["optimizers/index.md", *(f"optimizers/{name}.md" for name in pages.OPTIMIZERS)],
        "notebooks/": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS],
    }
    config.nav = [{title: made.get(str(at), at) for title, at in part.items()} for part in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and see to it that every public name has an entry."""
    try:
        made = {**pages.made(), **_of_the_repository(), **_of_notebooks(), "assets/STIXTwoMath-Regular.ttf": _font()}
    except ValueError as error:
        raise PluginError(str(error)) from error
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    found = links.entries((file.src_uri, file.content_string) for file in files if file.is_documentation_page())
    if wrong := api.problems(api.PUBLIC, found):
        raise PluginError("; ".join(wrong))
    config.extra["entries"] = found
    return files


def _of_the_repository() -> dict[str, str]:
    texts = {page: links.relinked((ROOT / file).read_text(), file, page) for file, page in links.PAGES.items()}
    return texts | {"index.md": f"---\nhide: [navigation]\n---\n\n{texts['index.md']}"}


def _of_notebooks() -> dict[str, str | bytes]:
    made: dict[str, str | bytes] = {}
    for path in NOTEBOOKS:
        text, pictures = notebook.to_markdown(path)
        page = f"notebooks/{path.stem}.md"
        made[page] = links.relinked(text, f"notebooks/{path.name}", page)
        made |= {f"notebooks/{name}": content for name, content in pictures.items()}
    return made


def _font() -> bytes:
    """The font of mathematics; found without importing ziamath, which has no other part in this."""
    package = importlib.util.find_spec("ziamath")
    assert package and package.submodule_search_locations
    return Path(package.submodule_search_locations[0], "fonts", "STIXTwoMath-Regular.ttf").read_bytes()


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in entries (``::: gradtx.rms``) and pictures (``::: picture of rule rms``), and make references links."""
    del files
    markdown = links.ENTRY.sub(lambda found: api.entry(found[1]), markdown)
    markdown = _PICTURE.sub(lambda found: pages.figure(found[1], found[2]), markdown)
    try:
        return links.referring(markdown, page.file.src_uri, config.extra["entries"])
    except ValueError as error:
        raise PluginError(str(error)) from error


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Maths, as arithmatex marks it, becomes MathML."""
    del page, config, files
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda tex: _mathml(tex[1]), content)
    block = r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>'
    return re.sub(block, lambda tex: _mathml(tex[1], display="block"), content, flags=re.DOTALL)


@functools.cache
def _mathml(tex: str, display: str = "inline") -> str:
    tex = html.unescape(tex.strip())
    for made, wanted in (("lv", r"\left|"), ("rv", r"\right|"), ("lV", r"\left\|"), ("rV", r"\right\|")):
        tex = tex.replace(f"\\{made}ert", wanted)  # bars as high as what is between them
    made = convert(tex, display=display)
    made = made.replace("&#x02190;</mo><mo>&#x02212;", '&#x02190;</mo><mo form="prefix">&#x02212;')  # ← −η
    return re.sub("<mo>([a-z]+)</mo>", r'<mo lspace="0.17em" rspace="0">\1</mo>', made)  # max(
