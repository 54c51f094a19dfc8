"""Sphinx extension: equations as MathML, made while the book is built.

Browsers draw MathML themselves, so a page needs no script for its equations.
"""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LOGGER = logging.getLogger(__name__)


def _mathml(node: nodes.Element, display: str) -> str:
    """The node's LaTeX as MathML; a warning and the source where it cannot be read."""
    source = node.astext()
    try:
        return convert(source, display=display)
    except Exception as error:
        LOGGER.warning("equation %r: %s", source, error or type(error).__name__, location=node)
        return f"<code>{html.escape(source)}</code>"


def _visit_math(self: Any, node: nodes.math) -> None:  # noqa: ANN401
    self.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _visit_math_block(self: Any, node: nodes.math_block) -> None:  # noqa: ANN401
    self.body.append(self.starttag(node, "div", CLASS="math-block"))
    self.body.append(_mathml(node, "block"))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
