"""The published figures, results/published.json, each with its source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.base import files
from helpers.base.errors import UserError
from helpers.base.text import Html, html, link

NEEDED = (
    *("tasks", "table1", "reference", "quality_per_compute", "flop_per_token", "best_of_ten"),
    *("electra_small_owt", "announcement", "rounding_exempt", "what_paid", "throughput"),
    *("training", "stated"),
)


def load(path: Path) -> dict[str, Any]:
    """The published figures as they stand in the file; every one has a known source and status."""
    published = files.read_json(Path(path))
    try:
        for where, figure in _figures(published, ""):
            for key, known in (("source", "sources"), ("status", "statuses")):
                if figure[key] not in published[known]:
                    raise UserError(f"{path}: {where}.{key}: {figure[key]!r} is not one of {known}")
        for key in NEEDED:
            published[key]
        for entry in published["throughput"]:
            entry["model"], entry["gpu"], entry["tokens_per_second"]
    except KeyError as error:
        raise UserError(f"{path}: field {error.args[0]} is missing") from None
    except TypeError as error:
        raise UserError(f"{path}: not of the form of the published figures ({error})") from None
    return published


def _figures(value: Any, where: str) -> Iterable[tuple[str, dict[str, Any]]]:  # noqa: ANN401
    """Every object that has a source, with its place."""
    if isinstance(value, dict):
        if "source" in value or "status" in value:
            yield where, value
        for key, inner in value.items():
            yield from _figures(inner, f"{where}.{key}".strip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _figures(inner, f"{where}[{number}]")


def task_name(published: dict[str, Any], task: str) -> str:
    """The task's name as it is printed."""
    return published["tasks"].get(task, {}).get("name", task)


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
    mark = link(f"[{number}{word}]", f"../book/references.html#source-{number}")
    return html('{}<sup title="{}">{}</sup>', text, status, mark)
