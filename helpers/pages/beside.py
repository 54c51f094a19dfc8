"""An encoder that was scored, beside the kept run's models and the floor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.base import config, files
from helpers.base.errors import UserError
from helpers.base.text import quantity
from helpers.data import glue, metrics
from helpers.leaderboard import submission
from helpers.pages import comparisons, tables
from helpers.pages import view as page_view
from helpers.pages.view import View
from helpers.score import paper
from helpers.train import records as records_of

OUTSIDE = " (outside the class)"


def open_run(run: Path, tasks: list[str]) -> View:
    """The records of every encoder that a run has scored on one of these tasks, as they are now."""
    every = page_view.load_records(run / "records")
    every = every[every["task"].isin(tasks)]
    # The run may since have been given other rows of a task: a table is of one dev set.
    made = {task: files.find_manifest(run / "data" / "glue" / task) for task in tasks}
    rows = zip(every["task"], every["hashes"], strict=True)
    same = [not made[task] or hashes["data"] == made[task]["files"] for task, hashes in rows]
    every = every[np.array(same, dtype=bool)]
    floors = every["model"].isin(records_of.FLOORS)
    scored = every[~floors].reset_index(drop=True)
    if scored.empty:
        raise UserError(f"{run}: no encoder has been scored there; small-bench score does")
    models = tuple(dict.fromkeys(scored["model"]))
    present = tuple(task for task in tasks if (scored["task"] == task).any())
    published = files.read_json(files.find("results/published.json"))
    return View(run, scored, published, models, present, {}, every[floors].reset_index(drop=True))


def groups(tasks: list[str]) -> list[list[str]]:
    """Tasks of GLUE, then those of your own, which have a table of theirs."""
    own = [task for task in tasks if glue.get(task).own]
    return [group for group in ([task for task in tasks if task not in own], own) if group]


def table(run: View, first: str = "") -> pd.DataFrame:
    """Means over seeds: the run's encoders, `first` on top, its floors, then the kept run's.

    The columns are the run's tasks, those that are not GLUE's own, whole, marked; the means over
    the whole ones and over all; then how each row came to be. Protocols differ between rows, which
    is why nothing here is a rank.
    """
    order = sorted(run.models, key=lambda model: model != first)
    rows = [_row(run, run, model) for model in [*order, *run.rows[len(run.models) :]]]
    if kept := _kept(run):
        tested = [model for model in kept.models if kept.of(model)["task"].isin(run.present).any()]
        rows += [_row(run, kept, model) for model in tested]
    return pd.DataFrame(rows).set_index("Model")


def lead(run: View, model: str) -> str:
    """An encoder's mean less the bag of words', with its 95 % interval; empty with one seed.

    The tasks are the headline's. The run has their data.
    """
    floor, own = records_of.FLOORS[0], replace(run, models=(model,), records=run.of(model))
    found = comparisons.compared(own).pairs.get((model, floor))
    title = next(name for name, tasks in _columns(own).items() if tasks == own.headline)
    return f"{title}, minus the bag of words, 95 %: {tables.interval(found)}" if found else ""


def differences(run: View) -> dict[str, Any]:
    """What the kept run was fine-tuned with where the run's encoders were not: value by name."""
    if not (kept := _kept(run)):
        return {}
    ours, theirs = (one.records["parameters"].iloc[0] for one in (run, kept))
    return {name: theirs[name] for name in ours if name in theirs and theirs[name] != ours[name]}


def _kept(run: View) -> View | None:
    """The run in the repository, whose scores are on GLUE, as this one's must be."""
    if run.embedded or not any(files.find(page_view.MEASURED).glob("*/run.json")):
        return None
    return page_view.open_run(page_view.kept_run())


def _row(run: View, own: View, model: str) -> dict[str, Any]:
    """A row of a run's tasks; `own` is where the model's records are."""
    mine = own.of(model)
    mine = mine[mine["task"].isin(run.present)]
    cells: dict[str, Any] = {"Model": _title(own, model, mine)}
    for title, tasks in _columns(run).items():
        cells[title] = own.over_seeds(model, tasks).mean
    seeds = mine.groupby("task").size()
    cells["Seeds"] = " to ".join(map(str, sorted({seeds.min(), seeds.max()}))) if len(mine) else 0
    if model in records_of.FLOORS or mine.empty:
        return cells | {"Collapsed": 0, "Protocol": "", "Parameters": ""}
    cells["Collapsed"] = int((mine["note"] == metrics.CONSTANT).sum())
    cells["Protocol"] = protocol(mine) if own is run else f"profile {mine['profile'].iloc[0]}"
    size = int(mine["pretrain.parameters"].max())
    cells["Parameters"] = quantity(size) + OUTSIDE * (size > submission.PARAMETER_LIMIT)
    return cells


def _columns(run: View) -> dict[str, list[str]]:
    """The tasks by heading, and the means of more than one."""
    means = tables.means(run) if len(run.present) < 2 else ()
    return {name: tasks for name, tasks in tables.columns(run).items() if name not in means}


def protocol(records: pd.DataFrame) -> str:
    """How the fine-tunings of a row were set: ``fixed``, or ``tuned, 8 trials`` a task at most.

    With another recipe than ``profiles/score.yaml`` has it is neither.
    """
    recipe = config.load_profile("score").model_dump()
    tuned = "protocol" in records and (records["protocol"] == "tuned").any()
    fixed = {name for name in recipe if name.startswith("finetune_")}
    fixed |= {"clip", "bias_correction"}
    fixed -= records_of.CHOSEN if tuned else set()
    for record in records.to_dict("records"):
        given, about = record["parameters"], record.get("checkpoint")
        positions = about["positions"] if isinstance(about, dict) else None
        wanted = recipe | {"max_length": min(recipe["max_length"], positions or math.inf)}
        if any(given.get(name, wanted[name]) != wanted[name] for name in {*fixed, "max_length"}):
            return f"recipe of {record['profile']}"
    return f"tuned, {max(map(len, records['trials']))} trials" if tuned else "fixed"


def _title(own: View, model: str, records: pd.DataFrame) -> str:
    """The checkpoint's source and which weights; a model of the study has its own name."""
    about = records["checkpoint"].iloc[0] if "checkpoint" in records and len(records) else None
    if not isinstance(about, dict):
        return paper.model_name(own.published, model)
    return f"{about['source']}@{model.rpartition('@')[2]}"
