"""What seeds and dev examples say: spread of every cell, best-of-n, differences, records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.base import files
from helpers.base.errors import UserError
from helpers.base.text import NONE, anchor, escape, markdown, record_link, score
from helpers.pages.tables import heading, is_embedded, means, present_tasks
from helpers.score import predictions, statistics
from helpers.score.paper import model_name, task_name
from helpers.score.statistics import Comparison, Summary

RECORD_FOLDER = "records"  # below the built pages
COMPARISONS = "comparisons.json"


def spread(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """Every cell over its seeds: n, median with interval, mean, sd, best of n.

    Args:
        records: Records of one profile and data source (`tables.select`).
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: a heading per model, a row per task and one for their average.
    """
    text = f"**Measured. {heading(records)}**\n\n"
    header = ["Task", "n", "Median", "95 % interval", "Mean", "SD", "Best of n"]
    shown = present_tasks(records, tasks)
    for model in models:
        if model not in set(records["model"]):
            continue
        rows = []
        for task in shown:
            found = statistics.cell(records, model, task)
            link = record_link(score(found.median), model, task) if found.n else NONE
            rows.append(_row(escape(task_name(published, task)), found, link))
        for name, group in means(records, tasks).items():
            average = statistics.mean_of_tasks(records, model, group)
            link = record_link(score(average.median), model)
            rows.append(_row(f"**{name}**", average, link))
        text += f"### {escape(model_name(published, model))}\n\n{markdown(header, rows)}\n"
    return text


def _row(name: str, found: Summary, median: str) -> list[str]:
    ends = NONE if np.isnan(found.low) else f"{found.low:.2f} to {found.high:.2f}"
    best = f"{found.best:.2f} (n = {found.n})" if found.n else NONE
    return [name, str(found.n), median, ends, score(found.mean), score(found.sd), best]


def best_of(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """Expected best-of-n of the average against n.

    Args:
        records: Records of one profile and data source.
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: a row per model, a column per n up to the seeds there are.
    """
    shown = present_tasks(records, tasks)
    by_seed = {
        model: statistics.seed_means(records, model, shown).tolist()
        for model in models
        if model in set(records["model"])
    }
    most = max(len(values) for values in by_seed.values())
    header = ["Model", "Median", *(f"Best of {n}" for n in range(1, most + 1))]
    rows = []
    for model, values in by_seed.items():
        best = [
            score(statistics.expected_best(values, n)) if n <= len(values) else NONE
            for n in range(1, most + 1)
        ]
        median = score(float(np.median(values))) if values else NONE
        rows.append([escape(model_name(published, model)), median, *best])
    return f"**Measured. {heading(records)}**\n\n{markdown(header, rows)}"


def comparisons(
    run: Path,
    records: pd.DataFrame,
    published: dict[str, Any],
    models: Sequence[str],
    tasks: Sequence[str],
) -> str:
    """Differences of the models' averages, and which of them are resolved.

    Args:
        run: The run's folder; its kept predictions are read.
        records: Records of one profile and data source.
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: models by models, row minus column, bold where the 95 % interval leaves zero out.

    Raises:
        UserError: When predictions are missing or do not fit their data.
    """
    names, found = compared(run, records, models, present_tasks(records, tasks))
    if len(names) < 2:
        return "Fewer than two models have every task: nothing to compare.\n"
    header = ["Row minus column", *(escape(model_name(published, name)) for name in names[1:])]
    rows = []
    for place, one in enumerate(names[:-1]):
        pairs = [found.get((one, two)) for two in names[place + 1 :]]
        cells = [_difference(pair) if pair else NONE for pair in pairs]
        rows.append([escape(model_name(published, one)), *[""] * place, *cells])
    resolved = sum(pair.resolved for pair in found.values())
    what = "on the embedded world, not GLUE" if is_embedded(records) else "on these dev sets"
    apart = len(names) * (len(names) - 1) // 2 - len(found)
    dash = f" {NONE}: predictions that were not kept in one place ({apart})." if apart else ""
    return (
        f"**Measured. {heading(records)}**\n\n{markdown(header, rows)}\n"
        f"{resolved} of {len(found)} differences are resolved at 95 % {what}.{dash}\n"
    )


def compared(
    run: Path, records: pd.DataFrame, models: Sequence[str], tasks: Sequence[str]
) -> tuple[list[str], dict[tuple[str, str], Comparison]]:
    """Every pair of the models that have all tasks.

    A run kept without its predictions (`make keep`) has the comparisons in a file of their own.

    Args:
        run: The run's folder.
        records: Records of one profile and data source.
        models: The models asked for.
        tasks: Tasks with a record.

    Returns:
        The models, and a comparison for each pair, the earlier model first. Kept comparisons may
        lack pairs: those of models that were run in different places.

    Raises:
        UserError: When predictions are missing or do not fit their data, or kept comparisons are
            of other tasks.
    """
    kept = run / COMPARISONS
    if kept.exists():
        found = files.read_json(kept)
        if found["tasks"] != list(tasks):
            raise UserError(f"{kept}: is of tasks {found['tasks']}, the records have {list(tasks)}")
        pairs = {(one, two): Comparison(*ends) for one, two, *ends in found["pairs"]}
        return found["models"], pairs
    stacks, truth = predictions.stacked(run, records, list(tasks))
    names = [model for model in models if model in stacks]
    if len(names) < 2:
        return names, {}
    return names, statistics.compare({name: stacks[name] for name in names}, truth)


def keep_comparisons(
    run: Path, records: pd.DataFrame, models: Sequence[str], tasks: Sequence[str], out: Path
) -> None:
    """Writes what `compared` finds to a folder that will have no predictions."""
    shown = present_tasks(records, tasks)
    names, pairs = compared(run, records, models, shown)
    rows = [[one, two, c.difference, c.low, c.high] for (one, two), c in pairs.items()]
    files.write_json(out / COMPARISONS, {"tasks": shown, "models": names, "pairs": rows})


def _difference(pair: Comparison) -> str:
    text = f"{pair.difference:+.2f}"
    ends = f"{pair.low:+.2f} to {pair.high:+.2f}"
    return f"**{text}** ({ends})" if pair.resolved else f"{text} ({ends})"


def record_list(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """The records behind every cell, with a link to each file.

    Args:
        records: Records of one profile and data source.
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: for each cell an anchor and a row per seed.
    """
    text = f"**Measured. {heading(records)}**\n\n"
    header = ["Seed", "Score", "Predictions", "Commit", "Device", "Record"]
    for model in models:
        mine = records[records["model"] == model]
        if mine.empty:
            continue
        text += f"({anchor(model)})=\n## {escape(model_name(published, model))}\n\n"
        for task in tasks:
            found = mine[mine["task"] == task]
            if found.empty:
                continue
            rows = [
                [
                    str(row["seed"]),
                    score(row["score"]),
                    f"`{row['predictions'][:12]}`",
                    _commit(row["code"]),
                    escape(row["hardware"]["name"]),
                    f'<a href="../{RECORD_FOLDER}/{model}/{task}/seed-{row["seed"]}.json">JSON</a>',
                ]
                for _, row in found.iterrows()
            ]
            text += f"({anchor(model, task)})=\n### {escape(task_name(published, task))}"
            text += f" ({escape(model)})\n\n{markdown(header, rows)}\n"
    return text


def _commit(code: dict[str, Any]) -> str:
    if code["commit"] is None:
        return NONE
    return f"`{code['commit'][:12]}`" + ("" if code["clean"] else " and changes")
