"""Everything the book includes of a run and of ``results/``, written to one folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from helpers.base import files
from helpers.leaderboard import check, page
from helpers.pages import (
    details,
    explain,
    explain_page,
    paper_page,
    plots,
    recipes,
    schedule,
    speeds,
    tables,
)
from helpers.score import audit, costs, paper, predictions

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
    "speed.md",
    "equal.md",
    "profile.md",
    "cost.md",
    "cluster.md",
    "leaderboard.md",
    "sources.md",
    "example.md",
    "signal.md",
    "generators.md",
    "small.md",
    "gpu_day.md",
    "tasks.md",
    "majority.md",
    "choices.md",
    "noise.md",
    "rank_shares.md",
    "equal_models.md",
    "stated.md",
    "beyond.md",
    "beyond_tasks.md",
    "summary.txt",
)


def write(
    records_folder: Path, published: Path, out: Path, models: list[str], tasks: list[str]
) -> None:
    """Write every fragment and figure the book includes.

    Args:
        records_folder: ``runs/<profile>/records``; entries of the leaderboard are checked with the
            dev labels in ``runs/<profile>/data`` where they are GLUE's own.
        published: ``results/published.json``; beside it stand what ``make bench`` measured
            (``bench.json``, ``curves.json``, ``stream.json``, ``profile.json``), what one GPU made
            (``side_by_side.json``), ``make beyond``'s ``recipes.json`` and ``gpus.json``;
            ``leaderboard/`` stands beside its folder.
        out: Folder for `FRAGMENTS` and `plots.FIGURES`; made if missing, each file replaced whole.
        models: Models the run was asked for, in order.
        tasks: Tasks the run was asked for, in order.

    Raises:
        UserError: A record or figure is broken, nothing was measured, or `out` cannot be written.
    """
    figures = paper.load(published)
    beside = Path(published).parent
    bench = speeds.load(beside / "bench.json", speeds.Speeds)
    curves = speeds.load(beside / "curves.json", speeds.Curves)
    profile = speeds.load(beside / "profile.json", speeds.Profile)
    study = recipes.load(beside / "beyond.json")
    gpus = costs.load(beside / "gpus.json")
    everything = tables.load_records(records_folder)
    records = tables.select(everything, models, tasks)
    run = Path(records_folder).parent
    asked, complete = (models, tasks), tables.complete_tasks(records, tasks)
    data = run / "data"
    labels = predictions.read_labels(data if (data / "glue").is_dir() else None)
    entries = check.check(beside.parent / "leaderboard", figures, labels)
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
        "speed.md": speeds.speed(bench),
        "equal.md": speeds.equal(curves),
        "profile.md": speeds.profiled(profile),
        "cost.md": paper_page.cost(figures, gpus, costs.table(gpus, figures)),
        "cluster.md": schedule.cluster(gpus),
        "leaderboard.md": page.page(entries, figures, labels),
        "sources.md": paper_page.source_list(figures),
        "example.md": explain_page.example(explain.corruption()),
        "signal.md": explain_page.signal(figures),
        "generators.md": explain_page.generators(figures),
        "small.md": explain_page.small(figures, gpus),
        "gpu_day.md": explain_page.gpu_day(figures, gpus),
        "tasks.md": explain_page.tasks(figures),
        "majority.md": explain_page.majority(run, records, figures, tasks),
        "choices.md": explain_page.choices(records, figures, models),
        "noise.md": explain_page.sources_of_noise(figures),
        "rank_shares.md": explain_page.rank_shares(figures),
        "equal_models.md": explain_page.equal_models(figures),
        "stated.md": explain_page.stated(figures),
        "beyond.md": recipes.table(study),
        "beyond_tasks.md": recipes.by_task(study),
        "summary.txt": tables.summary(records, figures, *asked),
    }
    about = run / "run.json"
    if not about.exists():
        parameters = {"models": list(models), "tasks": list(tasks)}
        files.write_json(about, {"parameters": parameters})
    for name in FRAGMENTS:
        files.write_text(Path(out) / name, texts[name])
    drawn = (
        plots.attention(explain.index_matrix(8, 3), explain.position_scores(run, models)),
        plots.noise(audit.equal_models(figures), audit.flips(figures)),
    )
    plots.write(records, figures, curves, drawn, Path(out), models, tasks)


def _left_over(everything: pd.DataFrame, shown: pd.DataFrame) -> str:
    count = len(everything) - len(shown)
    return f"\n{count} records of models or tasks not asked for are not shown.\n" if count else ""
