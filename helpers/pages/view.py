"""What a page shows: one run's records beside the published figures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.base import files
from helpers.base.errors import UserError
from helpers.pages import tables
from helpers.score import paper

MEASURED = "results/measured"  # runs that are kept in the repository
VARIABLE = "SMALL_BENCH_RUN"
"""The environment variable that names the run a book is built for; set by the build."""


@dataclass(frozen=True, eq=False)
class View:
    """One run as the pages and tables read it.

    Attributes:
        run: Its folder.
        records: One row per fine-tuning (`tables.load_records`), of the models and tasks asked for.
        published: `paper.load`.
        models: Rows asked for, in order; some may have no record.
        tasks: Columns asked for, in order.
        facts: ``run.json``: what else there is to say of the run.
    """

    run: Path
    records: pd.DataFrame
    published: dict[str, Any]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    facts: dict[str, Any]


def open_run(run: Path, published: str = "results/published.json") -> View:
    """Reads a run; its ``run.json`` says which models and tasks were asked for.

    Raises:
        UserError: It has no records of them, or a file is damaged.
    """
    facts = files.read_json(run / "run.json")
    asked = facts["parameters"]
    models, tasks = tuple(asked["models"]), tuple(asked["tasks"])
    records = tables.select(tables.load_records(run / "records"), models, tasks)
    return View(run, records, paper.load(files.find(published)), models, tasks, facts)


def current() -> View:
    """The run that the book is built for; by default the kept run whose models read most tokens."""
    wanted = os.environ.get(VARIABLE)
    return open_run(Path(wanted) if wanted else kept_run())


def inline(**numbers: float) -> None:
    """Gives numbers to a page's sentences, where ``{glue:text}`name:.2f``` prints one."""
    from myst_nb import glue

    for name, value in numbers.items():
        glue(name, value if isinstance(value, str) else float(value), display=False)


def kept_run(wanted: str = "") -> Path:
    """The run named, of those in ``results/measured``, or the one that read most tokens.

    Raises:
        UserError: It is not there, there is none, or two read as many.
    """
    kept = sorted(path.parent for path in files.find(MEASURED).glob("*/run.json"))
    if wanted:
        kept = [path for path in kept if path.resolve() == files.resolve(wanted).resolve()]
        if not kept:
            raise UserError(
                f"run = {wanted!r}: no run is kept there; small-bench keep --profile ... makes one"
            )
    if not kept:
        raise UserError(
            "results/measured: no run is kept; small-bench keep --profile ... makes one"
        )
    tokens = {path: files.read_json(path / "run.json")["tokens"] for path in kept}
    most = [path for path in kept if tokens[path] == max(tokens.values())]
    if len(most) > 1:
        names = ", ".join(os.path.relpath(path) for path in most)
        raise UserError(f"run = '': several runs read as many tokens, name one: {names}")
    return most[0]
