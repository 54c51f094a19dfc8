"""Check that every internal link, anchor and asset of built pages leads to a file.

Usage: ``python scripts/check_links.py runs/tiny/book/html``

An asset that would be fetched from the network counts as broken too. What the pages weigh is
printed below the count.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from urllib.parse import unquote, urlsplit

ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}
CSS_URL = re.compile(r"""url\(\s*["']?([^"')]+)""")


class Page(HTMLParser):
    """Collects the links, the assets and the anchors of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what one tag says."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "meta" and found.get("http-equiv", "").lower() == "refresh":
            self.links.append(found["content"].partition("url=")[2])
        if ASSETS.get(tag) in found:
            fetched = tag != "link" or FETCHED & set(found.get("rel", "").lower().split())
            (self.assets if fetched else self.links).append(found[ASSETS[tag]])


def check(folder: Path) -> tuple[int, list[str]]:
    """Check the pages and style sheets of a folder.

    Args:
        folder: Where the built pages lie.

    Returns:
        How many links, anchors and assets were checked, and one line for each broken one.

    Raises:
        ValueError: The folder holds no page.
    """
    pages: dict[Path, Page] = {}
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue  # templates that a theme ships beside its assets
        pages[path.resolve()] = page = Page()
        page.feed(path.read_text(encoding="utf-8"))
    if not pages:
        raise ValueError(f"{folder}: no built page")
    count, broken = 0, []
    for path, page in pages.items():
        where = path.relative_to(folder.resolve())
        for link, asset in [(x, False) for x in page.links] + [(x, True) for x in page.assets]:
            parts = urlsplit(link)
            if parts.scheme == "data" or (not asset and (parts.scheme or parts.netloc)):
                continue
            count += 1
            why = _wrong(path, link, pages, folder.resolve())
            if why:
                broken.append(f"{where}: {link}: {why}")
    for path in sorted(folder.rglob("*.css")):
        for link in CSS_URL.findall(path.read_text(encoding="utf-8", errors="replace")):
            if link.startswith(("http://", "https://", "//")):
                broken.append(f"{path.relative_to(folder)}: {link}: fetched from the network")
    return count, broken


def weights(folder: Path) -> dict[str, int]:
    """What a first visit to each page loads.

    Args:
        folder: Where the built pages lie.

    Returns:
        Bytes by the page's place: the page itself and every script, style sheet and image it
        names, uncompressed.
    """
    found = {}
    for path in sorted(folder.rglob("*.html")):
        place = path.relative_to(folder)
        if "_static" in place.parts:
            continue
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        named = {(path.parent / unquote(urlsplit(asset).path)).resolve() for asset in page.assets}
        parts = {path.resolve(), *(asset for asset in named if asset.is_file())}
        found[place.as_posix()] = sum(part.stat().st_size for part in parts)
    return found


def _wrong(path: Path, link: str, pages: dict[Path, Page], folder: Path) -> str:
    """What is wrong with a link of a page; empty where nothing is."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return "fetched from the network"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_relative_to(folder):
        return "leads out of the book"
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors:
        return "no such anchor"
    return ""


def main(arguments: list[str]) -> int:
    """Run the command line; 0 where nothing is broken."""
    if len(arguments) != 1:
        print("usage: python scripts/check_links.py HTML_DIR", file=sys.stderr)
        return 2
    try:
        count, broken = check(Path(arguments[0]))
    except ValueError as error:
        print(f"check_links: {error}", file=sys.stderr)
        return 1
    for line in broken:
        print(line)
    print(f"{count} internal links, anchors and assets checked, {len(broken)} broken")
    sizes = weights(Path(arguments[0]))
    usual, heaviest = median(sizes.values()), max(sizes, key=lambda place: sizes[place])
    whole = sum(path.stat().st_size for path in Path(arguments[0]).rglob("*") if path.is_file())
    print(
        f"{len(sizes)} pages; a first visit loads {usual / 1024:.0f} KiB (median), "
        f"at most {sizes[heaviest] / 1024:.0f} KiB ({heaviest}); all files: {whole / 2**20:.1f} MiB"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
