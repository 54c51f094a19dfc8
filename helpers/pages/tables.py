"""The tables of a run: functions of a `View` that return DataFrames; `show` lays one out.

Scores are metric x 100. A table with one row per model has them in the order asked for; a model
without a record has no values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup, escape
from pandas.io.formats.style import Styler

from helpers.base import files
from helpers.base.text import NONE, Html, anchor, html, link, quantity, record_link, span
from helpers.data import glue
from helpers.pages import comparisons as comparisons_of
from helpers.pages.comparisons import Compared, Labels, both_ways, compared
from helpers.pages.view import View
from helpers.score import audit, paper, statistics
from helpers.score.paper import cited
from helpers.score.statistics import Comparison
from helpers.train import records as records_of

SOURCES = {"embedded": "embedded world", "folder": "folder of files", "hub": "Hugging Face Hub"}
PARTS = ("pretrain_hardware", "hardware")
HEADS = "heads.csv"  # of notebook 05: attention from a sentence to the same words of another
BELOW = " ▾"  # behind a score that is not above the bag of words
BITS = "Held-out bits per byte"
WORDS = "text-align: left; white-space: normal; min-width: 7rem"


def show(
    frame: pd.DataFrame, caption: str = "", decimals: int | dict[str, int] = 2
) -> Styler | None:
    """A frame as the pages show it: text escaped (`text.link` is not text), a dash for nothing.

    `decimals` is that of floats, by column where they differ. Columns of words stand left. An index
    that only counts is hidden, and a frame without rows is not shown.
    """
    if frame.empty:
        return None
    if frame.index.nlevels == 1 and frame.index.name:  # one row of headings
        frame = frame.rename_axis(index=None, columns=frame.index.name)
    styler = frame.style.set_table_attributes('class="table"')
    styler.set_uuid(files.digest([caption, *map(str, frame.columns), len(frame)])[:8])
    styler.format(
        precision=decimals if isinstance(decimals, int) else 2,
        na_rep=NONE,
        escape="html",
        thousands=",",
    )
    for column, digits in {} if isinstance(decimals, int) else decimals.items():
        styler.format(precision=digits, na_rep=NONE, thousands=",", subset=[column])
    styler.format_index(escape="html").format_index(escape="html", axis="columns")
    words = [place for place in range(len(frame.columns)) if _holds_words(frame.iloc[:, place])]
    looks = [{"selector": f".col{place}", "props": WORDS} for place in words]
    styler.set_table_styles(looks)
    if isinstance(frame.index, pd.RangeIndex):
        styler.hide(axis="index")
    elif frame.index.nlevels > 1:
        styler.hide(names=True)
    return styler.set_caption(str(escape(caption))) if caption else styler


def _holds_words(column: pd.Series) -> bool:
    """Whether a value begins with a letter."""
    texts = (Markup(value).striptags() for value in column if isinstance(value, str | Html))
    return any(text[:1].isalpha() for text in texts)


# --- names -------------------------------------------------------------------------------------


def heading(view: View) -> str:
    """One line: profile, data source, tokens seen, hardware of the records."""
    records = view.records
    kind = " (not GLUE)" if view.embedded else ""
    tokens = span(records.loc[records["pretrain.tokens"] > 0, "pretrain.tokens"])
    return (
        f"Profile {records['profile'].iloc[0]} · data: {SOURCES[records['source'].iloc[0]]}{kind} "
        f"· tokens seen in pre-training: {tokens} · hardware: {_hardware(records, *PARTS)}"
    )


def _hardware(records: pd.DataFrame, *parts: str) -> str:
    """The machines behind the records, for pre-training, fine-tuning or both."""
    found = _unique(
        f"{one['name']} ({one['device']}, {one['threads']} thread{'s' * (one['threads'] != 1)})"
        for part in parts
        for one in records[part]
    )
    return "; ".join(found) or NONE


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _name(view: View, model: str) -> str:
    return paper.model_name(view.published, model)


def mean_name(view: View, tasks: Sequence[str]) -> str:
    """What the mean of these tasks is called, marked where one of them is reduced."""
    some = set(tasks) <= set(view.whole) and len(tasks) < len(view.present)
    return f"Mean of {len(tasks)}{' complete' if some else view.mark(tasks)}"


def means(view: View) -> dict[str, list[str]]:
    """The means of a table, by name: the headline's, then that of all tasks where it is another."""
    return {mean_name(view, tasks): tasks for tasks in (view.headline, view.present)}


def columns(view: View) -> dict[str, list[str]]:
    """Headings of the measured scores, each with the tasks it averages: every task, the means."""
    alone = {
        paper.task_name(view.published, task) + view.mark([task]): [task] for task in view.tasks
    }
    return alone | means(view)


# --- scores ------------------------------------------------------------------------------------


def spread(view: View) -> pd.DataFrame:
    """Every cell over its seeds: rows by model and heading; fields of `Summary`."""
    rows = {
        (_name(view, model), title): view.over_seeds(model, tasks)
        for model in view.rows
        for title, tasks in columns(view).items()
    }
    index = pd.MultiIndex.from_tuples(rows, names=["Model", "Task"])
    return pd.DataFrame([asdict(one) for one in rows.values()], index=index)


def _mean(view: View, model: str, tasks: Sequence[str]) -> Html | float:
    """A cell: the mean over seeds, linked to the records, and below it their range.

    `BELOW` stands behind one that is not above the bag of words; MNLI's mismatched rows follow a
    slash, and n stands where a cell has fewer seeds than its row.
    """
    found = view.over_seeds(model, tasks)
    if not found.n:
        return math.nan
    text, beside = f"{found.mean:.2f}", []
    if len(tasks) == 1:
        for metrics in view.of(model, tasks[0])["metrics"]:
            beside += [100 * metrics[key] for key in metrics if key.startswith("mismatched_")]
    text += f" / {statistics.summary(beside).mean:.2f}" if beside else ""
    below = BELOW if view.is_below_floor(model, tasks) else ""
    fewer = f" (n = {found.n})" if found.n < view.of(model).groupby("task").size().max() else ""
    cell = html("{}{}{}", record_link(text, model, *tasks[: len(tasks) == 1]), fewer, below)
    ends = html(" <br><small>{:.2f} to {:.2f}</small>", found.low, found.high)
    return html("{}{}", cell, ends) if found.n > 1 else cell


def grid(view: View) -> pd.DataFrame:
    """Tasks by models: measured, and below it what is published of the model, where it is on GLUE.

    Means of published scores are of the same tasks. Then what each model took.
    """
    entries = {} if view.embedded else view.published["table1"]["models"]

    def cell(model: str, tasks: Sequence[str]) -> Html | float:
        measured, entry = _mean(view, model, tasks), entries.get(model)
        if entry is None:
            return measured
        theirs = [entry["scores"][task] for task in tasks]
        shown = html("{:.2f}", math.fsum(one["value"] for one in theirs) / len(theirs))
        shown = cited(theirs[0], view.published) if len(theirs) == 1 else shown
        mine = measured if isinstance(measured, Html) else NONE
        return html("{} <br><small>published {}</small>", mine, shown)

    lines = {t: [cell(m, tasks) for m in view.rows] for t, tasks in columns(view).items()}
    seeds = [view.of(m).groupby("task").size().max() if len(view.of(m)) else 0 for m in view.rows]
    lines["Seeds"] = [int(n) for n in seeds]
    for title, key in {"Parameters": "parameters", "Tokens read": "tokens"}.items():
        lines[title] = [
            span(view.of(model)[f"pretrain.{key}"]) if model in view.models else math.nan
            for model in view.rows
        ]
    bits = [view.held_out.get(model, {}).get("bits_per_byte", math.nan) for model in view.rows]
    lines |= {BITS: bits} if any(bit == bit for bit in bits) else {}
    names = [_name(view, model) for model in view.rows]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names).rename_axis("Task")


def controls(view: View, found: Compared) -> pd.DataFrame:
    """What pre-training is worth: means over seeds, and the difference to the model's control.

    That is its own architecture without pre-training; NaN where the run has none. Intervals are
    those of `compared`, of the headline's tasks and of these without the one that matters most.
    """
    from helpers.model import registry  # torch

    rows = []
    for title, tasks in means(view).items():
        for model in view.models:
            mine = view.over_seeds(model, tasks)
            other = registry.control(model) or ""
            ran = bool(len(view.of(other)))
            against = view.over_seeds(other, tasks)
            main = found if tasks == view.headline else None
            pair = both_ways(found.pairs).get((model, other)) if main else None
            rows.append(
                {
                    "Model": _name(view, model),
                    "Tasks": title.removeprefix("Mean of "),
                    "Mean": mine.mean,
                    "Control": (other if ran else f"{other}, not run") if other else math.nan,
                    "Difference": mine.mean - against.mean,
                    "95 % from": pair.low if pair else math.nan,
                    "95 % to": pair.high if pair else math.nan,
                    "Without one task": least(view, main, model, other) if main else "",
                    "Seeds / control's": f"{mine.n} / {against.n}" if ran else f"{mine.n}",
                }
            )
    return pd.DataFrame(rows).set_index("Model")


def heads(view: View) -> pd.DataFrame:
    """The head of each model that best finds a word of one sentence in the other; may be empty."""
    place = view.run / HEADS
    if not place.exists():
        return pd.DataFrame()
    found = pd.read_csv(place)
    best = found.loc[found.groupby("model", sort=False)["ratio"].idxmax()].set_index("model")
    best = best.loc[[model for model in view.models if model in best.index]]
    rows = {
        "Ratio": best["ratio"],
        "Layer": best["layer"] + 1,
        "Head": best["head"] + 1,
        "STS-B": [view.over_seeds(model, ["stsb"]).mean for model in best.index],
    }
    table = pd.DataFrame(rows).rename_axis("Model")
    return table.rename(index=partial(_name, view))


def headline(view: View) -> pd.DataFrame:
    """What was measured, in one small table: the best model first."""
    main, scores = view.headline, audit.scores(view.published)
    found = {m: view.over_seeds(m, main) for m in view.rows}
    order = sorted((m for m in found if found[m].n), key=lambda model: -found[model].mean)
    rows = []
    for model in order:
        below = BELOW if view.is_below_floor(model, main) else ""
        title = f"Mean of {len(main)}{view.mark(main)}, × 100"
        row = {"Model": _name(view, model)}
        row[title] = html("{}{}", record_link(f"{found[model].mean:.2f}", model), below)
        if not view.embedded:
            theirs = scores.loc[model] if model in scores.index else None
            mean = math.nan if theirs is None else html("{:.2f}", theirs[list(main)].mean())
            row["Published"] = mean
        if len(main) < len(view.present):
            row[mean_name(view, view.present)] = view.over_seeds(model, view.present).mean
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["Model"]).set_index("Model")


def remarks(view: View) -> pd.DataFrame:
    """Cells with something to know: a note of their records, or no record."""
    rows = []
    for model in view.models:
        for task in view.tasks:
            notes = view.of(model, task)["note"]
            found = notes[notes != ""].value_counts(sort=False).to_dict()
            found |= {} if len(notes) else {"no record": 0}
            where = (_name(view, model), paper.task_name(view.published, task))
            rows += [(*where, note, f"{n} of {len(notes)}") for note, n in found.items()]
    return pd.DataFrame(rows, columns=["Model", "Task", "Remark", "Seeds"])


# --- comparisons -------------------------------------------------------------------------------


def key_figures(view: View) -> dict[str, Any]:
    """What the first sentences of a page say of a run: values for `view.inline`, by name.

    The best model, with its mean of the headline's tasks over seeds, beside the floor and its own
    control; of the models of the registry, how many are ahead of their control, and how many
    whichever task is left out; by question, what each pair of models says.
    """
    from helpers.model import registry  # torch

    main, floor = view.headline, records_of.FLOORS[0]
    scores = {model: view.over_seeds(model, main).mean for model in view.models}
    best = max(scores, key=lambda model: (scores[model] == scores[model], scores[model]))
    words, read = view.over_seeds(floor, main).mean, view.records["pretrain.tokens"]
    everything, unknown, control = compared(view), "not measured", registry.control(best) or ""
    pairs = both_ways(everything.pairs)
    found = {
        "best": _name(view, best),
        "score": scores[best],
        "tasks": ", ".join(paper.task_name(view.published, task) for task in main),
        "seeds": view.over_seeds(best, main).n,
        "floor": f"{words:.2f}" if words == words else unknown,
        "tokens": span(read[read > 0]) if read.any() else "no",
        "lead": interval(pairs.get((best, floor))) or unknown,
    }
    gain = interval(pairs.get((best, control))), least(view, everything, best, control)
    found["gain"] = "; ".join(filter(None, gain)) or unknown
    asked = [(model, registry.control(model) or "") for model in view.models if "+" not in model]
    worth = {pair: pairs[pair] for pair in asked if pair in pairs}
    without = [both_ways(rest) for rest in everything.without.values()]
    always = [p for p in worth if without and all(rest[p].low > 0 for rest in without)]
    found |= {"pretrained": len(worth), "helped": sum(one.low > 0 for one in worth.values())}
    found["helped_always"] = len(always)
    for what, asked in comparisons_of.QUESTIONS.items():
        lines = [
            f"{_name(view, one)} over {_name(view, other)} {interval(pairs[one, other])}, "
            + least(view, everything, one, other)
            for one, other in asked
            if (one, other) in pairs
        ]
        found[what] = "; ".join(lines) or unknown
    return found


def interval(pair: Comparison | None) -> str:
    """A difference and its 95 % interval in a line; empty without one."""
    form = "{0.difference:+.2f} ({0.low:+.2f} to {0.high:+.2f})"
    return "" if pair is None else form.format(pair)


def least(view: View, found: Compared, one: str, other: str) -> str:
    """What `comparisons.least` finds, in a line with the task's name; empty without it."""
    task, left = comparisons_of.least(found, one, other) or ("", None)
    return f"{interval(left)} without {paper.task_name(view.published, task)}" if left else ""


def comparisons(view: View) -> pd.DataFrame:
    """Checkpoints by checkpoints, row minus column with its 95 % interval, bold where resolved."""
    _, names, pairs, _ = compared(view)
    pairs = statistics.corrected(pairs)

    def cell(pair: Comparison | None) -> Html | float:
        if pair is None:
            return math.nan
        return html("<strong>{}</strong>" if pair.resolved else "{}", interval(pair))

    rows = [
        [cell(pairs.get((one, two))) if two in names[place + 1 :] else "" for two in names[1:]]
        for place, one in enumerate(names[:-1])
    ]
    titles = [_name(view, name) for name in names]
    index = pd.Index(titles[:-1], name="Row minus column")
    return pd.DataFrame(rows, index=index, columns=titles[1:])


# --- the run -----------------------------------------------------------------------------------


def rows(view: View) -> pd.DataFrame:
    """Rows of every split beside GLUE's own counts."""
    found = []
    for task in _unique([*view.tasks, *view.published["tasks"]]):
        mine, name = view.of(task=task), paper.task_name(view.published, task)
        if mine.empty:
            mark = "no record" if task in view.tasks else "not asked for"
            found.append((name, NONE, NONE, math.nan, mark))
        for split in _unique(split for splits in mine["rows"] for split in splits):
            counts = " / ".join(f"{n:,}" for n in _unique(r.get(split, 0) for r in mine["rows"]))
            official = glue.get(task).official_rows
            reduced = any(split in splits for splits in mine["reduced"])
            mark = "reduced" if reduced else "complete" if mine["complete"].all() else "as in GLUE"
            own = official.get(split, official.get(f"{split}_matched"))
            mark = SOURCES["embedded"] if view.embedded else mark
            found.append((name, split, counts, f"{own:,}" if own else NONE, mark))
    return pd.DataFrame(found, columns=["Task", "Split", "Rows here", "GLUE's own", "Mark"])


def run(view: View) -> pd.DataFrame:
    """What each model took; FLOPs are floating-point operations, times wall-clock seconds."""
    pretrained = {"Parameters": "parameters", "Generator": "generator_parameters"}
    pretrained |= {"Steps": "steps", "Tokens": "tokens", "Epochs": "epochs"}
    pretrained |= {"FLOPs": "flops", "Seconds": "seconds"}

    def row(model: str) -> dict[str, Any]:
        mine = view.of(model)
        cells = {"Size": " / ".join(_unique(mine["size"])) or NONE}
        cells |= {title: span(mine[f"pretrain.{key}"]) for title, key in pretrained.items()}
        spent = {"Their FLOPs": "finetune.flops", "Their seconds": "finetune.seconds"}
        spent = {title: quantity(mine[key].sum()) for title, key in spent.items()}
        return cells | {"Fine-tunings": len(mine)} | spent

    index = pd.Index([_name(view, model) for model in view.models], name="Model")
    return pd.DataFrame([row(model) for model in view.models], index=index)


def facts(view: View) -> pd.DataFrame:
    """What the run was made of and on: a row each for corpus, machines, precision, versions."""
    records = view.records
    trained = records[records["pretrain.steps"] > 0]
    versions = _unique(tuple(sorted(found.items())) for found in records["versions"])
    lines = {
        "Corpus": view.facts.get("corpus") or "; ".join(_unique(records["corpus"])),
        "Pre-training on": _hardware(trained, "pretrain_hardware"),
        "Fine-tuning on": _hardware(records, "hardware"),
        "Precision": ", ".join(_unique(records["precision"])),
        "Versions": "; ".join(" / ".join(map(" ".join, found)) for found in versions),
    }
    return pd.DataFrame({"This run": lines}).rename_axis("Fact")


def records(view: View) -> pd.DataFrame:
    """The records behind every cell; the first of each has the anchor that figures link to."""
    found, seen = [], set()
    for model in view.rows:
        for task in view.tasks:
            for row in view.of(model, task).to_dict("records"):
                names = [names for names in ((model,), (model, task)) if names not in seen]
                seen |= set(names)
                marks = [html('<span id="{}"></span>', anchor(*key)) for key in names]
                commit = (row["code"]["commit"] or "")[:12]
                changes = "" if row["code"]["clean"] else " and changes"
                place = f"../records/{model}/{task}/seed-{row['seed']}"
                told = records_of.folder(view.run, model, task) / f"seed-{row['seed']}.parquet"
                digest = html("<code>{}</code>", row["predictions"][:12])
                found.append(
                    {
                        "Model": html("{}" * (len(marks) + 1), *marks, _name(view, model)),
                        "Task": paper.task_name(view.published, task),
                        "Seed": row["seed"],
                        "Score": row["score"],
                        "Predictions": link(digest, f"{place}.parquet")
                        if told.exists()
                        else digest,
                        "Commit": html("<code>{}</code>{}", commit, changes)
                        if commit
                        else math.nan,
                        "Device": row["hardware"]["name"],
                        "Record": link("JSON", f"{place}.json"),
                    }
                )
    return pd.DataFrame(found)


def summary(view: View) -> str:
    """The measured scores as plain text, for a terminal: means over seeds, the headline's range."""
    found = spread(view)
    text = found["mean"].map("{:.2f}".format)
    ends = (
        " (" + found["low"].map("{:.2f}".format) + " to " + found["high"].map("{:.2f}".format) + ")"
    )
    places = [(model, tasks) for model in view.rows for tasks in columns(view).values()]
    low = [view.is_below_floor(*place) for place in places]
    text[low] += BELOW
    main = mean_name(view, view.headline)
    beside = (found.index.get_level_values("Task") == main) & (found["n"] > 1)
    text[beside] += ends[beside]
    table = text.where(found["n"] > 0, NONE).unstack(sort=False).rename_axis(None)
    table["Seeds"] = found["n"].groupby("Model", sort=False).max()
    reduced = rows(view).query("Mark == 'reduced'")
    notes = [f.to_string(index=False) for f in (reduced, remarks(view)) if len(f)]
    legend = [f"{BELOW.strip()} not above the bag of words"] if any(low) else []
    shown = [heading(view), table.rename_axis(None, axis=1).to_string(), *legend, *notes]
    return "\n\n".join(shown) + "\n"


def write(view: View, folder: Path, labels: Labels | None = None) -> None:
    """Writes the tables as plain text: ``summary.txt``, two CSV files and what `compared` finds.

    Numbers have six decimals, which do not depend on the processor or a library's version.
    """
    files.write_text(folder / "summary.txt", summary(view))
    files.write_text(folder / "table1.csv", spread(view).to_csv(float_format="%.6f"))
    found = compared(view, labels)
    worth = controls(view, found).to_csv(float_format="%.6f")
    files.write_text(folder / "controls.csv", worth)
    comparisons_of.write(found, folder)
