"""The built book in a real browser: Chromium, with every address but localhost cut off."""

import itertools
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import seaborn as sns
from makers import ROOT

from helpers.pages import plots
from helpers.score import paper

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CLIPPED = """() => {
  const scrolls = (e) => e && e.tagName !== "BODY" && (e.scrollWidth > e.clientWidth
    && ["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const wide = (e) => e.getBoundingClientRect().right > innerWidth
    || e.scrollWidth > e.clientWidth + 1;
  return [...document.querySelectorAll("article :is(pre, table, img, math)")]
    .filter((e) => e.checkVisibility() && wide(e) && !scrolls(e))
    .map((e) => e.outerHTML.slice(0, 200));
}"""
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
slow = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(book):
    """The address the book is served at."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(book)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """A page of a desktop's size whose links are relative to the book."""
    context = chromium.new_context(base_url=address, viewport=DESKTOP)
    yield context.new_page()
    context.close()


def places(book):
    found = (path.relative_to(book) for path in book.rglob("*.html"))
    return sorted(p.as_posix() for p in found if p.parts[0] != "_static")


def listen(context, address):
    """Cut the network off; a list that fills with what goes wrong on the context's pages."""
    wrong = []

    def route(request):
        if request.request.url.startswith(f"{address}/"):
            request.continue_()
        else:
            wrong.append(f"asked for {request.request.url}")
            request.abort()

    context.route("**/*", route)
    context.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    context.on("weberror", lambda e: wrong.append(str(e.error)))
    context.on("requestfailed", lambda r: wrong.append(f"{r.url}: {r.failure}"))
    context.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.url}: {r.status}"))
    return wrong


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"]
)
class TestEveryPage:
    pytestmark = slow

    def test_loads_fits_and_is_accessible(self, chromium, book, address, size, scheme):
        """Nothing fails or leaves localhost; axe finds nothing serious; images have a text."""
        import axe_playwright_python

        axe = Path(axe_playwright_python.__file__).parent / "axe.min.js"
        for place in places(book):
            # A context of its own makes each a first visit.
            context = chromium.new_context(viewport=size, color_scheme=scheme)
            wrong = listen(context, address)
            page = context.new_page()
            page.goto(f"{address}/{place}")
            if place == "index.html":
                page.wait_for_url("**/book/index.html")
            assert page.locator("html").get_attribute("data-theme") == scheme
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], place
            assert page.evaluate(CLIPPED) == [], place
            alts = page.locator("img").evaluate_all("all => all.map(i => i.getAttribute('alt'))")
            assert all(alt and " " in alt for alt in alts), (place, alts)
            assert not wrong, (place, wrong)
            page.add_script_tag(path=axe)
            found = page.evaluate("axe.run({resultTypes: ['violations'], preload: false})")
            bad = [
                (v["id"], node["target"], node["failureSummary"])
                for v in found["violations"]
                if v["impact"] in ("serious", "critical")
                for node in v["nodes"]
            ]
            assert not bad, (place, bad)
            context.close()


@pytest.mark.parametrize("words", ["disentangled attention", "ELECTRA-DeBERTa", "RoBERTa"])
class TestSearch:
    pytestmark = slow

    def test_finds(self, page, address, words):
        wrong = listen(page.context, address)
        page.goto(f"/search.html?q={words.replace(' ', '+')}")
        page.locator("#search-results li a").first.wait_for()
        page.wait_for_function(
            "document.querySelector('.search-summary').innerText.match(/finished|found/i)"
        )
        found = page.locator("#search-results li > a").evaluate_all("all => all.map(a => a.href)")
        wanted = "method" if words.islower() else "leaderboard"
        assert any(wanted in link for link in found), found
        assert not wrong


class TestPages:
    pytestmark = slow

    def test_the_first_page_answers_on_one_screen(self, page):
        page.goto("/book/index.html")
        for what in ("The claim", "What it does not", "not of GLUE"):
            box = page.locator(".landing").get_by_text(what).first.bounding_box()
            assert box["y"] + box["height"] <= DESKTOP["height"], what
        image = page.locator(".landing img").bounding_box()
        assert image["y"] + image["height"] <= DESKTOP["height"]
        assert image["width"] > 400

    def test_the_leaderboard_sorts_and_filters_by_keyboard(self, page):
        page.goto("/book/leaderboard.html")
        table = page.locator(".sortable").first
        column = table.locator("thead th").all_inner_texts()
        place = next(k for k, name in enumerate(column) if name.startswith("Average"))
        button = table.locator("thead button").nth(place)
        button.focus()
        for direction in (1, -1):
            page.keyboard.press("Enter")
            cells = table.locator(f"tbody td:nth-child({place + 1})").all_inner_texts()
            values = [float(cell) for cell in cells]
            assert len(values) == 5
            assert values == sorted(values)[::direction]
        table.locator("input").focus()
        page.keyboard.type("electra deb")
        rows = table.locator("tbody tr:visible")
        assert rows.count() == 1
        assert "ELECTRA-DeBERTa" in rows.inner_text()
        assert "1 of 5 rows" in table.locator("[role=status]").inner_text()

    @pytest.mark.parametrize("place", ["book/index", "book/leaderboard", "notebooks/03_pretrain"])
    def test_the_tab_key_reaches_everything(self, page, place):
        page.goto(f"/{place}.html")
        wanted = page.evaluate(
            """() => {
              const all = document.querySelectorAll(
                "a[href], button, input:not([type=hidden]), summary, [tabindex='0']");
              window.wanted = new Set([...all].filter((e) => e.checkVisibility({
                visibilityProperty: true}) && !e.disabled && e.tabIndex >= 0
                && !e.closest("dialog:not([open])")));
              document.addEventListener("focusin", (e) => window.wanted.delete(e.target));
              return window.wanted.size;
            }"""
        )
        assert wanted > 40
        for _ in range(wanted + 30):
            page.keyboard.press("Tab")
        left = page.evaluate("[...window.wanted].map((e) => e.outerHTML.slice(0, 200))")
        assert left == []

    def test_what_scrolls_has_a_name(self, page):
        page.set_viewport_size(PHONE)
        page.goto("/book/leaderboard.html")
        boxes = page.locator(".sortable .output[tabindex='0'], .tag_sortable .output[tabindex='0']")
        assert boxes.count() == 2
        for box in boxes.all():
            assert box.get_attribute("aria-label").startswith("Table, scrolls: Leaderboard")
        boxes.first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")


# --- colours, without a browser

# Severity 1.0: Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, table of matrices.
DEFICIENT = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "none": np.eye(3),
}
XYZ = np.array(  # of linear sRGB, IEC 61966-2-1
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour):
    """Linear sRGB of one in 0 to 1."""
    colour = np.asarray(colour)
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear sRGB under D65."""
    ratio = XYZ @ rgb / XYZ.sum(axis=1)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", DEFICIENT)
def test_colours_of_models_differ_for_colour_blind_readers(eyes):
    """A difference of 2.3 is just noticed; ten stands well clear of it."""
    models = [*paper.load(ROOT / "results" / "published.json")["table1"]["models"], "x"]
    colours = sns.color_palette(plots.PALETTE, len(models))
    seen = [lab(np.clip(DEFICIENT[eyes] @ linear(colour), 0, 1)) for colour in colours]
    for one, two in itertools.combinations(seen, 2):
        assert np.linalg.norm(one - two) > 10
    assert len(set(plots.MARKERS)) == len(plots.MARKERS) > len(models)


def test_letters_in_plots_have_contrast():
    """WCAG 2.2, 1.4.3: 4.5 to 1, for every colour a plot writes in."""
    with plots.style():
        import matplotlib as mpl

        names = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
        letters = {mpl.colors.to_rgb(mpl.rcParams[name]) for name in names}
        ground = mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])
    for colour in letters:
        light, dark = (float(XYZ[1] @ linear(c)) for c in (ground, colour))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
