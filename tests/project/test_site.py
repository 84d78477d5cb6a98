"""The documentation as its readers get it: built as in CI, equal in each build, and looked at in a browser.

The browser is any Chromium on the machine (Debian's package ``chromium-headless-shell`` will do), driven by playwright.
The screenshots lie in the temporary folder of this run, which the assertions name; look at them.
"""

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1400, 400
SHOWN = ("index", "guide/start", "rules/rms", "optimizers/adam", "reference/chains", "notebooks/quickstart", "404")
FAQ = "Questions and answers (FAQ)"
WORDS = {
    "warmup": "Coming from optax",
    "EMA": "Coming from optax",
    "overfit": FAQ,
    "saddle": "Glossary",
    "batch size": "What the article claims, to be seen > Batch sizes",
    "Muon": "muon",
    "Lion": "lion",
    "FAQ": FAQ,
    "which optimizer": "Which optimizer?",
    "which optimizer should I use": "Which optimizer?",
    "custom rule": FAQ,
    "local minimum": "Glossary",
    "StepLR": "Coming from torch or Keras",
    "MultiSteps": "Coming from optax",
    "过拟合": "中文简介",
}
"""Words to search for, and the title of a page that is to be among the first three."""

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("default::DeprecationWarning")]  # of playwright

OVERFLOW = """() => {
    const width = document.documentElement.clientWidth
    const inBox = (node) => node && node.tagName != "BODY"
        && (getComputedStyle(node).overflowX != "visible" || inBox(node.parentElement))
    const beyond = [...document.querySelectorAll("article *")].filter(
        (node) => node.getBoundingClientRect().right > width + 1 && !inBox(node.parentElement))
    const cut = [...document.querySelectorAll("article pre")].filter((node) => node.scrollWidth > node.clientWidth + 1
        && Math.max(...node.innerText.split("\\n").map((line) => line.length)) <= 88)
    return {
        page: document.documentElement.scrollWidth - width,
        beyond: beyond.slice(0, 3).map((node) => node.outerHTML.slice(0, 80)),
        cut: cut.slice(0, 3).map((node) => node.innerText.slice(0, 80)),
    }
}"""
"""By how much a page is wider than its window; what lies beyond its edge in no box that scrolls; code that is cut."""


def build(folder, seed):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", folder / "doctrees"]
    subprocess.run([*command, ROOT / "docs", folder / "site"], check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The one at ``$SITE``, if it is built already, as in CI."""
    return Path(os.environ["SITE"]) if "SITE" in os.environ else build(tmp_path_factory.mktemp("first"), "1")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no browser")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # as root, in CI
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page; what goes wrong on it, and what it fetches."""
    page = browser.new_page(viewport={"width": WIDE, "height": 900}, color_scheme="light")
    page.wrong = []
    page.on("console", lambda said: page.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or page.wrong.append(asked.url))
    yield page
    page.close()


def test_pages_fit_their_windows(site, page, tmp_path):
    """All of them, wide and narrow, light and dark; from the disk, without a network and without an error."""
    wrong, pages = {}, sorted(path.relative_to(site) for path in site.rglob("*.html") if "_static" not in path.parts)
    for name in pages:
        page.goto((site / name).as_uri())
        for width in (WIDE, NARROW):
            page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark") if str(name.with_suffix("")) in SHOWN else ("light",):
                page.emulate_media(color_scheme=scheme)
                seen = page.evaluate(OVERFLOW)
                if seen["page"] > 0 or seen["beyond"] or (seen["cut"] and width == WIDE):
                    wrong[f"{name} {width}"] = seen
                if str(name.with_suffix("")) in SHOWN:
                    page.screenshot(path=tmp_path / f"{name.stem}-{width}-{scheme}.png", full_page=True)
        page.emulate_media(color_scheme="light")
        if page.wrong:
            wrong[str(name)] = page.wrong.copy()
            page.wrong.clear()
    assert len(pages) > 100 and not wrong, tmp_path


def test_pictures_follow_the_light(site, page):
    """Their ink is that of the text, and letters are legible on a telephone."""
    page.set_viewport_size({"width": NARROW, "height": 900})
    ink = "node => getComputedStyle(node).getPropertyValue('--picture-ink') && getComputedStyle(node).stroke"
    axis = ".picture svg #patch_3 path"
    page.goto((site / "rules" / "rms.html").as_uri())
    light = page.eval_on_selector(axis, ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    dark = page.eval_on_selector(axis, ink)
    assert light != dark and "none" not in (light, dark)
    # Of a picture 5 inches wide, in which letters are 9.5 points high.
    width = page.eval_on_selector(".picture svg", "node => node.getBoundingClientRect().width")
    assert 9.5 / 72 * width / 5 >= 9


@pytest.mark.parametrize("lost", ["lost.html", "guide/lost.html", "rules/a/lost.html"])
def test_what_is_lost_leads_home(lost, site, page):
    """A server shows 404.html for what there is not, in any folder: with its style, and links that lead somewhere."""

    def serve(route):
        path = site / route.request.url.removeprefix("http://docs.test/main/").partition("?")[0]
        route.fulfill(path=path) if path.is_file() else route.fulfill(path=site / "404.html", status=404)

    page.route("http://docs.test/**", serve)
    page.goto(f"http://docs.test/main/{lost}")
    assert page.evaluate("getComputedStyle(document.querySelector('.bd-header')).position") == "sticky"
    page.get_by_role("article").get_by_role("link", name="rules").click()
    page.wait_for_url("http://docs.test/main/rules/index.html")
    assert page.title().startswith("Rules")


@pytest.mark.parametrize(("words", "title"), WORDS.items())
def test_search_finds(words, title, site, page):
    page.goto(f"{(site / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    first = "[...document.querySelectorAll('#search-results ul.search > li > a')].slice(0, 3).map((a) => a.innerText)"
    page.wait_for_function(f"title => {first}.includes(title)", arg=title, timeout=10_000)
    assert not page.wrong


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "rules/rms.html": ("default_value", "0.9", "Args", "<math", "<svg", "Elsewhere"),
        "optimizers/muon.html": ('<span class="pre">matrix</span>', "orthogonalize"),
        "reference/chains.html": ('id="gradtx.Chain.init"', 'id="gradtx.Chain.update"'),
        "reference/writing.html": ('id="gradtx.Rule.apply"', 'id="gradtx.Rule.slots"', 'id="gradtx.Hyper"'),
        "reference/wrappers.html": ('id="gradtx.SwitchState.switched"', "Attributes"),
        "reference/dialects.html": ('id="gradtx.dialects.keras.adam"', 'href="../rules/nesterov.html#gradtx.nesterov"'),
        "notebooks.html": ('class="gallery', 'src="_images/quickstart.png"', 'src="_images/port_a_script.png"'),
        "notebooks/quickstart.html": ("<table", "<math", 'src="../_images/'),
    }.items(),
)
def test_entries_are_whole(name, parts, site):
    """Signatures with defaults, sections, members that are inherited, links, equations and pictures."""
    text = (site / name).read_text()
    assert [part for part in parts if part not in text] == []


def test_two_builds_are_equal(site, tmp_path):
    """To the last byte, whatever the order of sets: no dates, and no addresses of objects."""
    other = build(tmp_path, "2")
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    assert len(files) == sum(path.is_file() for path in other.rglob("*"))
    assert filecmp.cmpfiles(site, other, map(str, files), shallow=False)[1:] == ([], [])
