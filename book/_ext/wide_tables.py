"""Sphinx extension: a table that is wider than the text takes the page's full width."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

COLUMN_OF_TEXT = 90  # letters of a table, about
BREAKS_AT = 16  # letters; numbers, which are aligned right, do not break


def width(table: nodes.table) -> int:
    """Letters in a row of a table where words are broken as far as is comfortable."""
    columns: dict[int, int] = {}
    for row in table.findall(nodes.row):
        for place, entry in enumerate(row.findall(nodes.entry)):
            text = entry.findall(lambda n: isinstance(n, nodes.Text))
            letters = sum(len(n) for n in text if not isinstance(n.parent, nodes.raw))
            body = isinstance(row.parent, nodes.tbody)
            if not (body and "text-right" in entry["classes"]):
                letters = min(letters, BREAKS_AT)
            columns[place] = max(columns.get(place, 0), letters + 2)
    return sum(columns.values())


class WideTables(SphinxPostTransform):
    """Put each wide table in a box of the theme's class ``full-width``."""

    default_priority = 500
    formats = ("html",)

    def run(self) -> None:
        """Wrap the tables of one page."""
        for table in list(self.document.findall(nodes.table)):
            if width(table) > COLUMN_OF_TEXT:
                box = nodes.container(classes=["full-width"], is_div=True)
                table.replace_self(box)
                box += table


def _no_launch(app: Sphinx, pagename: str, *_: object) -> None:
    """Keeps the theme from a Colab link to a page that computes: only notebooks open there."""
    if not pagename.startswith("notebooks/"):
        app.env.metadata[pagename].pop("kernelspec", None)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(WideTables)
    app.connect("html-page-context", _no_launch, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
