"""The tables of a run that the book shows: as measured, and beside the published figures.

Published figures come from `paper`, measured ones from the records of a run. Every function
that returns text returns Markdown that Jupyter and MyST both read.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import escape as escape_html
from pandas.io.formats.style import Styler

from helpers.base.errors import UserError
from helpers.base.text import (
    NONE,
    escape,
    markdown,
    plus_minus,
    quantity,
    record_link,
    score,
    signed,
    span,
)
from helpers.data import glue
from helpers.pages.paper_page import cited, derived, source_list
from helpers.score import audit, statistics
from helpers.score.paper import mean_of, model_name, some_but_not_all, task_name
from helpers.train import records as records_of

SOURCES = {"embedded": "embedded world", "folder": "folder of files", "hub": "Hugging Face Hub"}
CAPTION = (
    "Metric × 100. A task's cell is the median over seeds; n stands where a cell has fewer seeds "
    "than its row. MNLI is matched / mismatched, and the matched one counts. The mean of the tasks "
    "is taken for each seed that has every task; the median over these seeds stands with its 95 % "
    "bootstrap interval, and beside them the best seed's, of the first mean. A mean with † counts "
    "reduced tasks too."
)
PARTS = ("pretrain_hardware", "hardware")


def show(frame: pd.DataFrame, caption: str = "", decimals: int | dict[str, int] = 2) -> Styler:
    """A frame as the pages show it: text escaped (`text.link` is not text), a dash for nothing.

    `decimals` is that of floats, by column where they differ. An index that only counts is hidden.
    """
    styler = frame.style.set_uuid("t").set_table_attributes('class="table"')
    styler.format(
        precision=decimals if isinstance(decimals, int) else 2,
        na_rep=NONE,
        escape="html",
        thousands=",",
    )
    for column, digits in {} if isinstance(decimals, int) else decimals.items():
        styler.format(precision=digits, na_rep=NONE, thousands=",", subset=[column])
    styler.format_index(escape="html").format_index(escape="html", axis="columns")
    if isinstance(frame.index, pd.RangeIndex):
        styler.hide(axis="index")
    return styler.set_caption(str(escape_html(caption))) if caption else styler


# --- reading -----------------------------------------------------------------------------------


def load_records(folder: Path) -> pd.DataFrame:
    """Read every record of a run that its manifests vouch for.

    Args:
        folder: ``runs/<profile>/records``, with ``<model>/<task>/seed-<n>.json`` below it.

    Returns:
        One row per fine-tuning, sorted by model, task and seed. Columns are the fields of
        `records.Record`, those of its parts with a dot (``pretrain.tokens``); scores are
        metric x 100, times in seconds.

    Raises:
        UserError: There is no record, or one is damaged, incomplete or of an unknown task.
    """
    folder = Path(folder)
    if folder.name != "records":
        raise UserError(f"{folder}: the folder of a run's records is named records")
    cells = sorted(path.parent for path in folder.glob("*/*/manifest.json"))
    models, tasks = ({cell.parts[place] for cell in cells} for place in (-2, -1))
    found = records_of.read_all(folder.parent, sorted(models), sorted(tasks))
    if not found:
        raise UserError(f"{folder}: no record; run notebooks/04_finetune.ipynb first")
    for record in found:
        glue.get(record["task"])
    frame = pd.DataFrame([_flat(record) for record in found])
    return frame.sort_values(["model", "task", "seed"], ignore_index=True)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its parts' fields beside its own."""
    flat = dict(record)
    for part in ("pretrain", "finetune"):
        flat |= {f"{part}.{key}": value for key, value in flat.pop(part).items()}
    return flat


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


# --- what a run holds --------------------------------------------------------------------------


def select(records: pd.DataFrame, models: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """The records of the models and tasks asked for.

    Raises:
        UserError: None is left, or they come from more than one profile or data source.
    """
    chosen = records[records["model"].isin(list(models)) & records["task"].isin(list(tasks))]
    if chosen.empty:
        raise UserError(f"no record of models {', '.join(models)} on tasks {', '.join(tasks)}")
    for field in ("profile", "source"):
        found = _unique(chosen[field])
        if len(found) > 1:
            raise UserError(f"records mix {field} {' and '.join(found)}: show one at a time")
    return chosen.reset_index(drop=True)


def complete_tasks(records: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """The tasks whose records are all on GLUE's own splits, whole."""
    return [t for t in tasks if t in set(records["task"]) and _of(records, t)["complete"].all()]


def present_tasks(records: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """The tasks that have at least one record, in the order given."""
    return [task for task in tasks if task in set(records["task"])]


def is_embedded(records: pd.DataFrame) -> bool:
    """Whether the records are on the embedded world."""
    return bool((records["source"] == "embedded").all())


def _of(records: pd.DataFrame, task: str) -> pd.DataFrame:
    return records[records["task"] == task]


def official_rows(task: str, split: str) -> int | None:
    """GLUE's own row count of a split; None where GLUE has no such split."""
    counts = glue.TASKS[task].official_rows
    return counts.get(split, counts.get(f"{split}_matched"))


def heading(records: pd.DataFrame) -> str:
    """One line: profile, data source, tokens seen, hardware of the records shown."""
    source = SOURCES[records["source"].iloc[0]]
    kind = " (not GLUE)" if is_embedded(records) else ""
    tokens = span(records.loc[records["pretrain.tokens"] > 0, "pretrain.tokens"])
    return (
        f"Profile {escape(records['profile'].iloc[0])} · data: {source}{kind} · "
        f"tokens seen in pre-training: {tokens} · hardware: {_hardware(records)}"
    )


def _hardware(records: pd.DataFrame, *parts: str) -> str:
    """The machines behind the records, for pre-training, fine-tuning or both."""
    found = [value for part in parts or PARTS for value in records[part]]
    return "; ".join(
        f"{escape(one['name'])} ({escape(one['device'])}, "
        f"{one['threads']} thread{'s' * (one['threads'] != 1)})"
        for one in _unique_dicts(found)
    )


def warnings(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> list[str]:
    """What a reader must know before reading a measured table.

    Args:
        records: The records shown.
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown sentences: embedded data, reduced splits with their row counts, what is missing.
    """
    lines = []
    if is_embedded(records):
        lines.append(
            "These scores are on the **embedded world**, a generated language with tasks of "
            "GLUE's shape. They are not GLUE scores and cannot be compared with published ones."
        )
    for task in present_tasks(records, tasks):
        lines += [] if is_embedded(records) else _reduced(records, published, task)
    absent = [task for task in tasks if task not in set(records["task"])]
    if absent:
        names = ", ".join(task_name(published, task) for task in absent)
        lines.append(f"Missing tasks (asked for, no record): {names}.")
    unasked = [task for task in published["tasks"] if task not in tasks]
    if unasked:
        names = ", ".join(task_name(published, task) for task in unasked)
        lines.append(f"Tasks this run did not ask for: {names}.")
    absent = [model for model in models if model not in set(records["model"])]
    if absent:
        lines.append(f"Missing models (asked for, no record): {', '.join(map(escape, absent))}.")
    for model in present_models(records, models):
        have = set(records.loc[records["model"] == model, "task"])
        lacking = [task_name(published, t) for t in present_tasks(records, tasks) if t not in have]
        if lacking:
            lines.append(
                f"{escape(model)} has no record of {', '.join(lacking)}, so it has no mean."
            )
    return lines


def remarks(records: pd.DataFrame, published: dict[str, Any]) -> list[str]:
    """Notes on single cells, such as constant predictions, as Markdown sentences."""
    lines = []
    noted = records[records["note"] != ""]
    for (model, task, note), group in noted.groupby(["model", "task", "note"], sort=False):
        total = len(records[(records["model"] == model) & (records["task"] == task)])
        lines.append(
            f"{escape(model)} on {task_name(published, task)}: {escape(note)} "
            f"({len(group)} of {total} seeds)."
        )
    return lines


def _reduced(records: pd.DataFrame, published: dict[str, Any], task: str) -> list[str]:
    """One sentence for a task that is not GLUE's own, whole."""
    rows = _of(records, task)
    if rows["complete"].all():
        return []
    name = task_name(published, task)
    parts = []
    for split in _unique(split for splits in rows["reduced"] for split in splits):
        counts = " / ".join(f"{n:,}" for n in _unique(r.get(split, 0) for r in rows["rows"]))
        official = official_rows(task, split)
        of = f" of GLUE's {official:,}" if official else ""
        if split == "train":
            what = "reduced training set"
        elif split in ("validation", glue.TASKS[task].validation):
            what = "not GLUE's dev set"
        else:
            what = f"reduced {escape(split)} (not in the score)"
        parts.append(f"{what}: {counts}{of} rows")
    return [f"{name} †: {'; '.join(parts) or 'not a complete GLUE task'}."]


def present_models(records: pd.DataFrame, models: Sequence[str]) -> list[str]:
    """The models that have at least one record, in the order given."""
    return [model for model in models if model in set(records["model"])]


def _notes(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _mark(records: pd.DataFrame, task: str) -> str:
    """The sign of a task that is not GLUE's own, whole."""
    rows = _of(records, task)
    return "" if rows.empty or is_embedded(records) or rows["complete"].all() else " †"


def means(records: pd.DataFrame, tasks: Sequence[str]) -> dict[str, list[str]]:
    """What the means of a table are over.

    Args:
        records: Records of one profile and data source (`select`).
        tasks: The tasks asked for.

    Returns:
        Tasks by the name of their mean: those that are GLUE's own, whole, where they are some of
        the tasks; then all that have a record, marked where one of them is reduced.
    """
    shown, whole = present_tasks(records, tasks), complete_tasks(records, tasks)
    groups = {f"Mean of {len(whole)} complete": whole} if 0 < len(whole) < len(shown) else {}
    mark = max((_mark(records, task) for task in shown), default="")
    return groups | {f"Mean of {len(shown)}{mark}": shown}


# --- Table 1 -----------------------------------------------------------------------------------


def table1_measured(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """The measured counterpart of Table 1.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: heading, what to know, table. Cells are medians over seeds; a missing one is a
        dash.
    """
    shown, groups = present_tasks(records, tasks), means(records, tasks)
    header = ["Model"]
    header += [
        task_name(published, t) + (_mark(records, t) if t in shown else " (missing)") for t in tasks
    ]
    header += [*groups, "Best of n", "Tokens seen", "Seeds"]
    present = present_models(records, models)
    rows = []
    for model in models:
        if model not in present:
            rows.append([escape(model), *[NONE] * (len(header) - 1)])
            continue
        mine = records[records["model"] == model]
        seeds = int(mine.groupby("task").size().max())
        cells = [_cell(records, model, task, seeds) for task in tasks]
        every = [statistics.mean_of_tasks(records, model, group) for group in groups.values()]
        for found in every:
            fewer = f" (n = {found.n})" if 0 < found.n < seeds else ""
            cells += [_linked(found, model) + fewer]
        cells += [f"{every[0].best:.2f} (n = {every[0].n})" if every[0].n else NONE]
        cells += [span(mine["pretrain.tokens"]), str(seeds)]
        rows.append([escape(model_name(published, model)), *cells])
    notes = warnings(records, published, models, tasks) + remarks(records, published)
    text = f"**Measured. {heading(records)}**\n\n"
    text += _notes(notes) + "\n" + markdown(header, rows)
    return f"{text}\n{CAPTION}\n"


def typical(found: statistics.Summary) -> str:
    """A median over seeds with its 95 % interval; the interval is left out where there is none."""
    if math.isnan(found.low):
        return score(found.median)
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def _linked(found: statistics.Summary, model: str) -> str:
    return record_link(typical(found), model) if found.n else NONE


def _cell(records: pd.DataFrame, model: str, task: str, seeds: int) -> str:
    found = statistics.cell(records, model, task)
    chosen = records[(records["model"] == model) & (records["task"] == task)]
    noted = int((chosen["note"] != "").sum())
    beside = [
        100 * value
        for metrics in chosen["metrics"]
        for name, value in metrics.items()
        if name.startswith("mismatched_")
    ]
    text = score(found.median) + (f" / {statistics.summary(beside).median:.2f}" if beside else "")
    text = record_link(text, model, task) if found.n else text
    text += f" (n = {found.n})" if 0 < found.n < seeds else ""
    return text + (f"\u00a0<sup>{noted} of {found.n} noted</sup>" if noted else "")


def table1_side_by_side(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """Published and measured scores beside each other, one small table per model.

    The difference is given only for tasks that are GLUE's own, whole.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown with a third-level heading per model.
    """
    whole = complete_tasks(records, tasks)
    notes = warnings(records, published, models, tasks) + remarks(records, published)
    text = _notes(notes) + "\n"
    if is_embedded(records):
        text += "The published figures stand beside them for layout only.\n\n"
    used = {"leaderboard"} & set(published["sources"])
    for model in models:
        entry = published["table1"]["models"].get(model)
        text += f"### {escape(model_name(published, model))}\n\n"
        mine = records[records["model"] == model]
        if mine.empty:
            text += "Asked for; no record.\n\n"
            continue
        if entry is None:
            text += "Nothing was published for this model.\n\n"
        else:
            used |= {figure["source"] for figure in entry["scores"].values()}
            used.add(entry["statistic"]["source"])
            text += f"Published cells: {cited(entry['statistic'], published)}. "
            text += "Measured cells: median over seeds.\n\n"
        header = [
            "Task",
            "Published: GLUE dev",
            f"Measured: p{heading(mine)[1:]}",
            "Difference",
            "Seeds",
        ]
        rows = [_beside(records, published, model, task, task in whole) for task in tasks]
        rows += _beside_means(records, published, model, tasks)
        text += markdown(header, rows) + "\n"
    return text + source_list(published, used)


def _beside(
    records: pd.DataFrame, published: dict[str, Any], model: str, task: str, comparable: bool
) -> list[str]:
    entry = published["table1"]["models"].get(model)
    figure = entry["scores"][task] if entry and task in entry["scores"] else None
    found = statistics.cell(records, model, task)
    name = task_name(published, task) + (_mark(records, task) if found.n else " (missing)")
    gap = found.median - figure["value"] if figure and comparable and found.n else math.nan
    return [
        name,
        cited(figure, published) if figure else NONE,
        _cell(records, model, task, found.n),
        NONE if math.isnan(gap) else f"{gap:+.2f}\u00a0<sup>D</sup>",
        str(found.n),
    ]


def _beside_means(
    records: pd.DataFrame, published: dict[str, Any], model: str, tasks: Sequence[str]
) -> list[list[str]]:
    """Rows for the mean of the complete tasks, of those present, and of all eight."""
    whole, groups = complete_tasks(records, tasks), means(records, tasks)
    known = list(published["tasks"])
    scores = audit.scores(published)
    if len(present_tasks(records, tasks)) < len(known):
        groups[f"Mean of {len(known)}"] = known
    rows = []
    for name, group in groups.items():
        found = statistics.mean_of_tasks(records, model, group)
        theirs = mean_of(scores.loc[model], group) if model in scores.index else math.nan
        gap = found.median - theirs if set(group) <= set(whole) else math.nan
        rows.append(
            [
                f"**{name}**",
                NONE if math.isnan(theirs) else derived(theirs),
                _linked(found, model),
                NONE if math.isnan(gap) else f"{gap:+.2f}\u00a0<sup>D</sup>",
                str(found.n),
            ]
        )
    return rows


# --- Table 2 -----------------------------------------------------------------------------------


def table2(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """Averages against BERT-Base, as published and as measured.

    A measured gap is given only where a model has all eight tasks whole.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown.
    """
    reference = published["reference"]
    base, name = reference["average"], escape(reference["name"])
    shown, whole = present_tasks(records, tasks), complete_tasks(records, tasks)
    few = some_but_not_all(whole, published)
    ours = [f"Mean of {len(whole)} complete"] * few
    theirs = audit.scores(published)

    size = cited(reference["parameters_millions"], published)
    rows = [[name, size, *[NONE] * few, cited(base, published), NONE]]
    used = {base["source"], reference["parameters_millions"]["source"]}
    for model, entry in published["table1"]["models"].items():
        size, average = entry["parameters_millions"], entry["average"]
        used |= {size["source"], average["source"]}
        row = [escape(entry["name"]), cited(size, published)]
        row += [derived(mean_of(theirs.loc[model], whole))] * few
        row += [cited(average, published), derived(base["value"] - average["value"])]
        rows.append(row)
    eight = f"Mean of {len(published['tasks'])}, GLUE dev"
    header = ["Model", "Parameters, millions", *ours, eight, f"Below {name}"]
    text = "**As published.**\n\n" + markdown(header, rows) + "\n" + source_list(published, used)

    comparable = set(whole) == set(published["tasks"])
    rows = []
    for model in models:
        found = statistics.mean_of_tasks(records, model, shown)
        own = statistics.mean_of_tasks(records, model, whole)
        size = span(records.loc[records["model"] == model, "pretrain.parameters"])
        row = [escape(model_name(published, model)), size]
        row += [*[_linked(own, model)] * few, _linked(found, model)]
        row += [derived(base["value"] - found.median) if comparable and found.n else NONE]
        rows.append([*row, str(found.n)])
    header = ["Model", "Parameters", *ours, list(means(records, tasks))[-1], f"Below {name}"]
    header += ["Seeds"]
    text += f"\n**As measured. {heading(records)}**\n\n" + markdown(header, rows) + "\n"
    text += f"This run has no {name}. " + _why_no_gap(records, published, whole, name) + "\n\n"
    return text + _notes(warnings(records, published, models, tasks))


def _why_no_gap(
    records: pd.DataFrame, published: dict[str, Any], whole: Sequence[str], name: str
) -> str:
    if set(whole) == set(published["tasks"]):
        return f"The gap is against the published mean of {name}."
    if is_embedded(records):
        return f"No gap is given: the embedded world is not GLUE, and {name}'s mean is GLUE's."
    names = ", ".join(task_name(published, t) for t in published["tasks"] if t not in whole)
    return (
        f"No gap is given: {name}'s mean is over all eight GLUE tasks, and here these are "
        f"reduced or missing: {names}."
    )


# --- the run -----------------------------------------------------------------------------------


def rows(records: pd.DataFrame, published: dict[str, Any], tasks: Sequence[str]) -> str:
    """Rows of every split beside GLUE's own counts.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names.
        tasks: The tasks asked for.

    Returns:
        Markdown.
    """
    lines = []
    for task in tasks:
        mine = _of(records, task)
        if mine.empty:
            lines.append([task_name(published, task), NONE, NONE, NONE, "missing"])
        for split in _unique(split for splits in mine["rows"] for split in splits):
            counts = " / ".join(f"{n:,}" for n in _unique(r.get(split, 0) for r in mine["rows"]))
            official = official_rows(task, split)
            reduced = any(split in splits for splits in mine["reduced"])
            mark = "reduced" if reduced else "complete" if mine["complete"].all() else "as in GLUE"
            if is_embedded(records):
                mark = "embedded world"
            own = f"{official:,}" if official else NONE
            lines.append([task_name(published, task), split, counts, own, mark])
    header = ["Task", "Split", "Rows here", "GLUE's own", "Mark"]
    text = f"**Rows. {heading(records)}**\n\n" + markdown(header, lines, left=2)
    if is_embedded(records):
        text += "\nThe embedded world is not GLUE; GLUE's counts stand for orientation.\n"
    return text


def scratch(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """What pre-training is worth: the difference to the model that had none.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown; one sentence where there is no control.
    """
    text = f"**Difference to scratch. {heading(records)}**\n\n"
    if "scratch" not in set(records["model"]):
        return (
            text + "The control `scratch` (fine-tuned without pre-training) has no record here.\n"
        )
    lines = []
    for what, group in means(records, tasks).items():
        control = statistics.mean_of_tasks(records, "scratch", group)
        for model in present_models(records, models):
            found = statistics.mean_of_tasks(records, model, group)
            gain, error = statistics.difference(found, control)
            own = model == "scratch"
            ratio = NONE if own or not error > 0 else f"{gain / error:.1f}"
            mean = record_link(plus_minus(found.mean, found.se), model)
            cells = [mean, NONE if own else signed(gain, error), ratio]
            name = escape(model_name(published, model))
            lines.append([name, what.removeprefix("Mean of "), *cells, f"{found.n} / {control.n}"])
    header = ["Model", "Tasks", "Mean", "Difference", "In standard errors", "Seeds / scratch"]
    text += markdown(header, lines) + "\n"
    text += (
        "Mean of the tasks by seed, then over seeds, ± its standard error. The error of a "
        "difference is the root of the two summed squares; it needs two seeds on both sides.\n\n"
    )
    return text + _notes(warnings(records, published, models, tasks))


def headline(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """What was measured, in one small table: the best model first.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names and means.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Markdown: what the data was, table. Medians over seeds of the mean of the tasks: of the
        complete ones with its interval and beside the published mean of the same, then of all.
    """
    shown, main = present_tasks(records, tasks), statistics.counted(records, tasks)
    found = {
        model: statistics.mean_of_tasks(records, model, main)
        for model in present_models(records, models)
    }
    order = sorted((m for m in found if found[m].n), key=lambda m: -found[m].median)
    control = found["scratch"].median if "scratch" in order else math.nan
    embedded, fewer = is_embedded(records), len(main) < len(shown)
    theirs = audit.scores(published)
    rows = []
    for model in order:
        own = found[model]
        gain = NONE if model == "scratch" else signed(own.median - control, math.nan)
        row = [escape(model_name(published, model)), record_link(_typical(own, embedded), model)]
        if not embedded:
            row += [_published_mean(theirs, model, main)]
        if fewer:
            row += [score(statistics.mean_of_tasks(records, model, shown).median)]
        rows.append([*row, gain])
    header = ["Model", f"Mean of {len(main)}, × 100"]
    header += [] if embedded else ["Published"]
    header += [f"Mean of {len(shown)} †"] * fewer + ["Above scratch"]
    return f"{_what_data(records, published, main, fewer)}\n\n{markdown(header, rows)}"


def _typical(found: statistics.Summary, embedded: bool) -> str:
    return score(found.median) if embedded else typical(found)


def _published_mean(scores: pd.DataFrame, model: str, tasks: Sequence[str]) -> str:
    return derived(mean_of(scores.loc[model], tasks)) if model in scores.index else NONE


def _what_data(
    records: pd.DataFrame, published: dict[str, Any], main: Sequence[str], fewer: bool
) -> str:
    """What stands above the headline: the run, its corpus, which tasks count."""
    source = SOURCES[records["source"].iloc[0]]
    text = f"Profile {escape(records['profile'].iloc[0])}, {source}"
    if is_embedded(records):
        return (
            f"{text}: a generated language, **not GLUE**. Compare these means with each other only."
        )
    trained = records[records["pretrain.tokens"] > 0]
    if not trained.empty:
        corpora = "; ".join(escape(corpus) for corpus in _unique(trained["corpus"]))
        passes = span(trained["pretrain.epochs"])
        text += f"; pre-trained on {span(trained['pretrain.tokens'])} tokens, {passes} passes over "
        text += corpora
    names = ", ".join(task_name(published, task) for task in main)
    text += f". Medians over seeds; the mean of {len(main)} is that of {names}"
    if complete := set(main) == set(complete_tasks(records, main)):
        text += ", which are GLUE's own, whole"
    if fewer and complete:
        text += "; † counts reduced tasks too, and compares with nothing published"
    return text + "."


def run(records: pd.DataFrame, published: dict[str, Any], models: Sequence[str]) -> str:
    """What was run: data, budget, hardware and versions, by model.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names.
        models: The models asked for.

    Returns:
        Markdown. FLOPs are floating-point operations, times are wall-clock seconds.
    """
    header = [
        "Model",
        "Size",
        "Parameters",
        "Generator",
        "Steps",
        "Tokens",
        "Passes over the corpus",
    ]
    header += ["FLOPs", "Seconds", "Fine-tunings", "Their FLOPs", "Their seconds"]
    lines = []
    for model in models:
        mine = records[records["model"] == model]
        if mine.empty:
            lines.append([escape(model), "missing", *[NONE] * (len(header) - 2)])
            continue
        spans = ("parameters", "generator_parameters", "steps", "tokens", "epochs")
        spans += ("flops", "seconds")
        row = [escape(model_name(published, model)), escape(" / ".join(_unique(mine["size"])))]
        row += [span(mine[f"pretrain.{key}"]) for key in spans]
        row += [
            str(len(mine)),
            *(quantity(mine[f"finetune.{key}"].sum()) for key in ("flops", "seconds")),
        ]
        lines.append(row)
    versions = "; ".join(
        " / ".join(f"{escape(name)} {escape(value)}" for name, value in found.items())
        for found in _unique_dicts(records["versions"])
    )
    corpora = "; ".join(escape(corpus) for corpus in _unique(records["corpus"]))
    trained = records[records["pretrain.steps"] > 0]
    precision = ", ".join(map(escape, _unique(records["precision"])))
    facts = [
        f"Corpus: {corpora}.",
        f"Pre-training on {_hardware(trained, 'pretrain_hardware') or NONE}.",
        f"Fine-tuning on {_hardware(records, 'hardware')}, precision {precision}.",
        f"Versions: {versions}.",
    ]
    return (
        f"**Run. {heading(records)}**\n\n" + _notes(facts) + "\n" + markdown(header, lines, left=2)
    )


def _unique_dicts(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(items) for items in _unique(tuple(sorted(value.items())) for value in values)]


def summary(
    records: pd.DataFrame, published: dict[str, Any], models: Sequence[str], tasks: Sequence[str]
) -> str:
    """The measured scores as plain text, for a terminal.

    Args:
        records: Records of one profile and data source (`select`).
        published: The published figures, for names.
        models: The models asked for.
        tasks: The tasks asked for.

    Returns:
        Aligned lines: heading, table (medians over seeds; mean ± standard error), what to know.
    """
    shown, groups = present_tasks(records, tasks), means(records, tasks)
    header = ["model", *(task_name(published, t) + _mark(records, t) for t in shown)]
    header += [*(name.lower() for name in groups), "seeds"]
    table = [header]
    for model in present_models(records, models):
        cells = [score(statistics.cell(records, model, task).median) for task in shown]
        found = [statistics.mean_of_tasks(records, model, group) for group in groups.values()]
        cells += [plus_minus(one.mean, one.se) for one in found]
        table.append([model, *cells, str(found[-1].n)])
    widths = [max(len(line[k]) for line in table) for k in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if k == 0 else c.rjust(w)
            for k, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    notes = warnings(records, published, models, tasks) + remarks(records, published)
    notes = [line.replace("**", "") for line in notes]
    text = "\n".join([heading(records), "", *lines, "", *notes])
    return html.unescape(text).rstrip() + "\n"
