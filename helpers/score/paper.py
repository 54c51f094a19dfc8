"""The published figures, results/published.json, each with its source."""

from __future__ import annotations

from typing import Any

from helpers.base.text import Html, html, link
from helpers.data import glue


def task_name(published: dict[str, Any], task: str) -> str:
    """The task's name as it is printed; of a task of your own, the title in its file."""
    known = published["tasks"].get(task)
    return known["name"] if known else glue.get(task).name


def model_name(published: dict[str, Any], model: str) -> str:
    """The model's name as it is published; its registry name where it was not."""
    return published["table1"]["models"].get(model, {}).get("name", model)


def cited(figure: dict[str, Any], published: dict[str, Any], decimals: int = 2) -> Html:
    """A published figure with the number of its source, which leads to the list of sources.

    A word says how it was found, where it was not read at the source.
    """
    if figure["value"] is None:
        return html("not found")
    number = list(published["sources"]).index(figure["source"]) + 1
    value = figure["value"]
    text = value if isinstance(value, str) else f"{value:.{decimals}f}"
    status = published["statuses"][figure["status"]]
    word = "" if figure["status"] == "R" else f", {status.split()[0]}"
    mark = link(f"[S{number}{word}]", f"../book/references.html#source-{number}")
    return html('{}<sup title="{}">{}</sup>', text, status, mark)
