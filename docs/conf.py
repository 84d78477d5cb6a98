"""The documentation: ``pip install -e ".[docs]" && sphinx-build -W docs site``, then open ``site/index.html``.

Pages of rules and optimizers are made from the code by ``docs/generate``. Nothing is fetched; two builds are equal.
"""

import importlib.util
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for docs.generate, which is not installed

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_ziamath = importlib.util.find_spec("ziamath")  # found without being imported: only its font is wanted
assert _ziamath and _ziamath.submodule_search_locations

project = "gradtx"
project_copyright = "the authors of gradtx, Apache-2.0"
release = version = _project["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.generate.extension"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types of other libraries in signatures: nothing is fetched to find them
exclude_patterns = ["generate"]

# Markdown and notebooks. Notebooks are shown with the outputs that are stored in them.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # of outputs: tables and equations
myst_enable_extensions = ["dollarmath", "attrs_inline", "deflist"]
myst_heading_anchors = 4

# Docstrings.
highlight_language = "text"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = [("Attributes", "params_style"), ("Args", "params_style")]
maximum_signature_line_length = 88
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# Pages.
html_theme = "pydata_sphinx_theme"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_title = f"gradtx {version}"
html_math_renderer = "mathml"
html_static_path = ["assets", str(Path(_ziamath.submodule_search_locations[0], "fonts", "STIXTwoMath-Regular.ttf"))]
html_css_files = ["site.css"]
html_search_scorer = str(ROOT / "docs" / "assets" / "scorer.js")
html_logo = html_favicon = "assets/logo.svg"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": html_title},
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
