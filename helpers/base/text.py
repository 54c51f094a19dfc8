"""Small pieces of text that the book's tables are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

NONE = "–"


def quantity(value: float) -> str:
    """A count in a short form: 2048000 is ``2.05 M``; zero is ``0``."""
    short = float(f"{value:.3g}")
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(short) >= size:
            return f"{short / size:.3g} {unit}" if short / size < 1000 else f"{value:.2e}"
    return f"{value:g}"


def span(values: Iterable[float]) -> str:
    """One quantity, or the least and the greatest."""
    found = sorted(set(values))
    if not found:
        return NONE
    return " to ".join(dict.fromkeys([quantity(found[0]), quantity(found[-1])]))


def anchor(*names: str) -> str:
    """The label under which the page of results lists a model, or a model's task."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(("records", *names)).lower())


@dataclass(frozen=True)
class Html:
    """Markup that a table shows as it is: no str, which pandas would turn into plain text."""

    markup: Markup

    def __html__(self) -> str:
        return self.markup

    __str__ = _repr_html_ = __html__


def html(form: str, *parts: object) -> Html:
    """`form` with `parts` in its braces, each escaped unless it is :class:`Html`."""
    return Html(Markup(form).format(*parts))


def link(text: object, address: str) -> Html:
    """A link; both parts are escaped."""
    return html('<a href="{}">{}</a>', address, text)


def record_link(text: object, *names: str) -> Html:
    """A figure, linked to the records behind it, from any page: all lie one folder deep."""
    return link(text, f"../book/results.html#{anchor(*names)}")
