"""The built book in a real browser: Chromium, with every address but localhost cut off."""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

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


class TestPages:
    pytestmark = slow

    def test_the_first_page_answers_on_one_screen(self, page):
        page.goto("/book/index.html")
        for what in ("The claim", "What was measured", "not of GLUE"):
            box = page.locator(".landing").get_by_text(what).first.bounding_box()
            assert box["y"] + box["height"] <= DESKTOP["height"], what
        image = page.locator(".landing img").bounding_box()
        assert image["y"] + image["height"] <= DESKTOP["height"]
        assert image["width"] > 400

    def test_what_scrolls_has_a_name(self, page):
        page.set_viewport_size(PHONE)
        page.goto("/book/leaderboard.html")
        boxes = page.locator(".cell_output .output[tabindex='0']")
        assert boxes.count() >= 2
        for box in boxes.all():
            assert box.get_attribute("aria-label").startswith("Table, scrolls: ")
        boxes.first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")
