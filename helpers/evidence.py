"""From a run's files back to its figures.

``make verify`` calls :func:`verify`. It trusts nothing that it can compute: scores follow from the
kept predictions and the labels, tables from the records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import config, files, glue, predictions, records
from helpers.config import UserError


def aligned(found: tuple[np.ndarray, np.ndarray], labels: pd.DataFrame, where: str) -> np.ndarray:
    """Predictions of one split, in the order of its labels.

    Args:
        found: idx and prediction, [n] each (`predictions.read_splits`).
        labels: Column idx.
        where: What an error begins with: file and split.

    Raises:
        UserError: When an example is missing, doubled, unknown, or out of order.
    """
    (have, values), want = found, labels["idx"].to_numpy()
    if len(have) != len(want):
        raise UserError(f"{where}: {len(have)} predictions for {len(want)} examples")
    if not np.array_equal(have, want):
        place = int(np.flatnonzero(have != want)[0])
        raise UserError(
            f"{where}: row {place} is example {have[place]}, it must be {want[place]}: "
            "examples are missing, doubled or shuffled"
        )
    return values


def recompute(
    path: Path, task: str, labels: dict[str, pd.DataFrame]
) -> tuple[float, dict[str, float], str]:
    """Score, metrics and note that follow from kept predictions: as ``metrics.score``.

    Args:
        path: A ``seed-<n>.parquet``.
        task: Its task.
        labels: Split to a table with idx and label.

    Raises:
        UserError: When the predictions do not fit.
    """
    from helpers import metrics  # importing evaluate costs seconds

    found = predictions.read_splits(path, task, own=True)
    first, *others = glue.get(task).splits[1:]

    def scored(split: str) -> tuple[float, dict[str, float], str]:
        values = aligned(found[split], labels[split], f"{path}, {split}")
        return metrics.score(task, values, labels[split]["label"].to_numpy())

    score, values, note = scored(first)
    for split in others:
        values |= {f"mismatched_{key}": value for key, value in scored(split)[1].items()}
    return score, values, note


def stacked(
    run: Path, found: pd.DataFrame, tasks: list[str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Predictions of every model that has all tasks, for ``statistics.compare``.

    Args:
        run: The run's folder.
        found: Records (`tables.load_records`).
        tasks: Tasks to take.

    Returns:
        Model to task to [seeds, examples] on the headline split, and task to labels [examples].

    Raises:
        UserError: When a prediction file is missing or does not fit.
    """
    split = {task: glue.get(task).validation for task in tasks}
    truth = {task: glue.load(run, task, split[task]) for task in tasks}
    models: dict[str, dict[str, np.ndarray]] = {}
    for model, mine in found.groupby("model", sort=False):
        if not set(tasks) <= set(mine["task"]):
            continue
        models[str(model)] = {task: [] for task in tasks}
        for task in tasks:
            runs = []
            for seed in mine.loc[mine["task"] == task, "seed"]:
                path = records.folder(run, str(model), task) / f"seed-{seed}.parquet"
                part = predictions.read_splits(path, task, own=True)[split[task]]
                runs.append(aligned(part, truth[task], f"{path}, {split[task]}"))
            models[str(model)][task] = np.stack(runs)
    return models, {task: table["label"].to_numpy() for task, table in truth.items()}


def verify(run: Path, published: Path, models: list[str], tasks: list[str]) -> list[str]:
    """Recomputes every score and table of a run.

    Args:
        run: The run's folder.
        published: ``results/published.json``.
        models: Rows of the tables.
        tasks: Their columns.

    Returns:
        What is wrong, one line each that names file, field or cell, and both values; empty when
        everything holds.

    Raises:
        UserError: When the run has no record.
    """
    cells = sorted(path.parent for path in (run / "records").glob("*/*/manifest.json"))
    if not cells:
        raise UserError(f"{run / 'records'}: no record; run notebooks/04_finetune.ipynb first")
    wrong = [line for cell in cells for line in _verify_cell(run, cell)]
    return wrong or list(_verify_tables(run, published, models, tasks))


def _verify_cell(run: Path, cell: Path) -> Iterator[str]:
    try:
        manifest = files.read_manifest(cell / "manifest.json")
    except UserError as error:
        yield str(error)
        return
    for name, value in manifest["files"].items():
        path = cell / name
        if not path.exists() or files.sha256(path) != value:
            yield f"{path}: missing or changed since its manifest was written"
        elif path.suffix == ".json":
            try:
                yield from _verify_record(run, path, records.read(path))
            except UserError as error:
                yield str(error)


def _verify_record(run: Path, path: Path, record: dict[str, Any]) -> Iterator[str]:
    where = (path.parent.parent.name, path.parent.name, path.stem)
    if where != (record["model"], record["task"], f"seed-{record['seed']}"):
        yield f"{path}: is the record of {record['model']}, {record['task']}, {record['seed']}"
    kept = path.with_suffix(".parquet")
    if not kept.exists() or files.sha256(kept) != record["predictions"]:
        yield f"{path}: predictions: {kept.name} is missing or not the one with this hash"
        return
    task = record["task"]
    beside = {
        "data": run / "data" / "glue" / task,
        "encoder": run / "models" / record["model"],
    }
    for part, folder in beside.items():
        for name, value in record["hashes"][part].items():
            if not (folder / name).is_file() or files.sha256(folder / name) != value:
                yield f"{path}: hashes.{part}: {folder / name} is missing or not the one scored"
    labels = {split: glue.load(run, task, split) for split in glue.get(task).splits[1:]}
    score, metrics, note = recompute(kept, task, labels)
    for name, ours in (("score", score), ("metrics", metrics), ("note", note)):
        if record[name] != ours:
            yield f"{path}: {name} = {record[name]!r}: the predictions give {ours!r}"


def _verify_tables(
    run: Path, published: Path, models: list[str], tasks: list[str]
) -> Iterator[str]:
    from helpers import report

    with tempfile.TemporaryDirectory() as name:
        again = Path(name)
        report.write(run / "records", published, again, models, tasks)
        for path in sorted(again.iterdir()):
            there = run / "tables" / path.name
            if not there.exists():
                yield f"{there}: missing"
            elif there.read_bytes() != path.read_bytes():
                yield f"{there}: {_first_difference(there, path)}"


def _first_difference(old: Path, new: Path) -> str:
    """The first line that differs; of a table's row, the cell."""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (old, new)]
    for number, (one, two) in enumerate(zip(*lines, strict=False), 1):
        if one != two:
            cells = [line.split("|") for line in (one, two)]
            if len(cells[0]) == len(cells[1]) > 2 and new.suffix == ".md":
                one, two = next((a, b) for a, b in zip(*cells, strict=True) if a != b)
            return f"line {number} has {one.strip()[:80]!r}, the records give {two.strip()[:80]!r}"
    return f"{len(lines[0])} lines, the records give {len(lines[1])}"


def verify_profile(profile: config.Profile) -> list[str]:
    """:func:`verify` for the run of a profile, with the tasks its source has."""
    tasks = glue.available(profile.source, profile.data, profile.tasks)
    published = config.find("results/published.json")
    return verify(profile.folder, published, profile.models, tasks)
