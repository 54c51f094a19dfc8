"""Everything the book includes of a run and of ``results/``, written to one folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from helpers.base import files
from helpers.pages import details, paper_page, plots, tables
from helpers.score import paper

FRAGMENTS = (
    "claim.md",
    "headline.md",
    "table1_published.md",
    "table1_measured.md",
    "table1_side_by_side.md",
    "table2.md",
    "rows.md",
    "scratch.md",
    "run.md",
    "recipes.md",
    "reference_points.md",
    "spread.md",
    "best_of.md",
    "comparisons.md",
    "records.md",
    "sources.md",
    "summary.txt",
)


def write(
    records_folder: Path, published: Path, out: Path, models: list[str], tasks: list[str]
) -> None:
    """Write every fragment and figure the book includes.

    Args:
        records_folder: ``runs/<profile>/records``.
        published: ``results/published.json``.
        out: Folder for `FRAGMENTS` and `plots.FIGURES`; made if missing, each file replaced whole.
        models: Models the run was asked for, in order.
        tasks: Tasks the run was asked for, in order.

    Raises:
        UserError: A record or figure is broken, nothing was measured, or `out` cannot be written.
    """
    figures = paper.load(published)
    everything = tables.load_records(records_folder)
    records = tables.select(everything, models, tasks)
    run = Path(records_folder).parent
    asked, complete = (models, tasks), tables.complete_tasks(records, tasks)
    texts = {
        "claim.md": paper_page.claim(figures),
        "headline.md": tables.headline(records, figures, *asked),
        "table1_published.md": paper_page.table1(figures, complete),
        "table1_measured.md": tables.table1_measured(records, figures, *asked),
        "table1_side_by_side.md": tables.table1_side_by_side(records, figures, *asked),
        "table2.md": tables.table2(records, figures, *asked),
        "rows.md": tables.rows(records, figures, tasks),
        "scratch.md": tables.scratch(records, figures, *asked),
        "run.md": tables.run(records, figures, models) + _left_over(everything, records),
        "recipes.md": paper_page.recipes(figures),
        "reference_points.md": paper_page.reference_points(figures),
        "spread.md": details.spread(records, figures, *asked),
        "best_of.md": details.best_of(records, figures, *asked),
        "comparisons.md": details.comparisons(run, records, figures, *asked),
        "records.md": details.record_list(records, figures, *asked),
        "sources.md": paper_page.source_list(figures),
        "summary.txt": tables.summary(records, figures, *asked),
    }
    about = run / "run.json"
    if not about.exists():
        parameters = {"models": list(models), "tasks": list(tasks)}
        files.write_json(about, {"parameters": parameters})
    for name in FRAGMENTS:
        files.write_text(Path(out) / name, texts[name])
    plots.write(records, figures, Path(out), models, tasks)


def _left_over(everything: pd.DataFrame, shown: pd.DataFrame) -> str:
    count = len(everything) - len(shown)
    return f"\n{count} records of models or tasks not asked for are not shown.\n" if count else ""
